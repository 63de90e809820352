"""The meaning of CUDA error codes for the context that raised them (D4), as data.

The codes are those of the runtime (`cudaError_t`); the driver's (`CUresult`) have the same numbers wherever both exist. The
kinds follow NVIDIA's description of each code, and where there is none, reports of users:

- `ContextPoisoned`: every further call fails or has no defined result. This includes the codes after which NVIDIA demands the
  end of the process, the codes whose extent only the hardware knows (after the death the parent asks NVML), and conditions
  that pass by themselves, for which a restart with backoff is right.
- `OutOfMemory`: the context is sound.
- `Unrecoverable`: the device, its driver or the configuration is broken, and no restart repairs it.
- None: a mistake of the program. Only its request fails, and the context is sound. The same holds for a code not listed here.
"""

from __future__ import annotations

import re
from typing import TypeAlias

from attrs import frozen

from ..errors import ContextPoisoned, DeviceError, OutOfMemory, Unrecoverable

Kind: TypeAlias = type[DeviceError] | None


@frozen
class Code:
    """One code.

    Args:
        number: the value of `error_code`.
        name: of the enumerator, without `cudaError`.
        kind: the error that it means; None for a mistake of the program.
        phrase: from the text of `cudaGetErrorString`, in lower case; None where that text is not specific enough.
    """

    number: int
    name: str
    kind: Kind
    phrase: str | None = None


CODES = (
    Code(1, "InvalidValue", None),
    Code(2, "MemoryAllocation", OutOfMemory, "out of memory"),
    Code(3, "InitializationError", ContextPoisoned, "initialization error"),
    Code(4, "CudartUnloading", ContextPoisoned, "driver shutting down"),
    Code(9, "InvalidConfiguration", None),
    Code(34, "StubLibrary", Unrecoverable, "cuda driver is a stub library"),
    Code(35, "InsufficientDriver", Unrecoverable, "driver version is insufficient"),
    Code(36, "CallRequiresNewerDriver", Unrecoverable),
    Code(46, "DevicesUnavailable", ContextPoisoned, "busy or unavailable"),
    Code(98, "InvalidDeviceFunction", None),
    Code(100, "NoDevice", Unrecoverable, "no cuda-capable device is detected"),
    Code(101, "InvalidDevice", Unrecoverable, "invalid device ordinal"),
    Code(102, "DeviceNotLicensed", Unrecoverable),
    Code(103, "SoftwareValidityNotEstablished", Unrecoverable),
    Code(200, "InvalidKernelImage", None),
    Code(201, "DeviceUninitialized", None),
    Code(209, "NoKernelImageForDevice", None),
    Code(214, "ECCUncorrectable", ContextPoisoned, "uncorrectable ecc error"),
    Code(218, "InvalidPtx", None),
    Code(220, "NvlinkUncorrectable", ContextPoisoned, "uncorrectable nvlink error"),
    Code(222, "UnsupportedPtxVersion", None),
    Code(226, "Contained", ContextPoisoned),
    Code(400, "InvalidResourceHandle", None),
    Code(401, "IllegalState", None),
    Code(500, "SymbolNotFound", None),
    Code(600, "NotReady", None),
    Code(700, "IllegalAddress", ContextPoisoned, "illegal memory access"),
    Code(701, "LaunchOutOfResources", None),
    Code(702, "LaunchTimeout", ContextPoisoned, "the launch timed out and was terminated"),
    Code(709, "ContextIsDestroyed", ContextPoisoned, "context is destroyed"),
    Code(710, "Assert", ContextPoisoned, "device-side assert triggered"),
    Code(714, "HardwareStackError", ContextPoisoned, "hardware stack error"),
    Code(715, "IllegalInstruction", ContextPoisoned, "illegal instruction"),
    Code(716, "MisalignedAddress", ContextPoisoned, "misaligned address"),
    Code(717, "InvalidAddressSpace", ContextPoisoned, "operation not supported on global/shared address space"),
    Code(718, "InvalidPc", ContextPoisoned, "invalid program counter"),
    Code(719, "LaunchFailure", ContextPoisoned, "unspecified launch failure"),
    Code(720, "CooperativeLaunchTooLarge", None),
    Code(721, "TensorMemoryLeak", ContextPoisoned),
    Code(800, "NotPermitted", None),
    Code(801, "NotSupported", None),
    Code(802, "SystemNotReady", ContextPoisoned, "system not yet initialized"),
    Code(803, "SystemDriverMismatch", Unrecoverable, "unsupported display driver / cuda driver combination"),
    Code(804, "CompatNotSupportedOnDevice", Unrecoverable, "forward compatibility was attempted on non supported hw"),
    Code(805, "MpsConnectionFailed", ContextPoisoned, "mps client failed to connect"),
    Code(806, "MpsRpcFailure", ContextPoisoned),
    Code(807, "MpsServerNotReady", ContextPoisoned),
    Code(808, "MpsMaxClientsReached", ContextPoisoned),
    Code(809, "MpsMaxConnectionsReached", ContextPoisoned),
    Code(810, "MpsClientTerminated", ContextPoisoned),
    Code(900, "StreamCaptureUnsupported", ContextPoisoned, "operation not permitted when stream is capturing"),
    Code(901, "StreamCaptureInvalidated", ContextPoisoned, "operation failed due to a previous error during capture"),
    Code(902, "StreamCaptureMerge", ContextPoisoned),
    Code(903, "StreamCaptureUnmatched", ContextPoisoned),
    Code(904, "StreamCaptureUnjoined", ContextPoisoned),
    Code(905, "StreamCaptureIsolation", ContextPoisoned),
    Code(906, "StreamCaptureImplicit", ContextPoisoned),
    Code(907, "CapturedEvent", ContextPoisoned),
    Code(908, "StreamCaptureWrongThread", ContextPoisoned),
    Code(911, "ExternalDevice", ContextPoisoned),
    Code(912, "InvalidClusterSize", None),
    Code(913, "FunctionNotLoaded", None),
    Code(914, "InvalidResourceType", None),
    Code(915, "InvalidResourceConfiguration", None),
    Code(999, "Unknown", ContextPoisoned, "cuda error: unknown error"),
)  # fmt: skip

BY_NUMBER = {code.number: code for code in CODES}
_BY_NAME = {code.name.lower(): code for code in CODES}
_BY_DRIVER_NAME = _BY_NAME | {
    "outofmemory": BY_NUMBER[2],
    "notinitialized": BY_NUMBER[3],
    "deinitialized": BY_NUMBER[4],
    "deviceunavailable": BY_NUMBER[46],
    "launchfailed": BY_NUMBER[719],
}
"""The codes by the driver's names, without `CUDA_ERROR_` and underscores; most of these names are the runtime's too."""

_NAME = re.compile(r"\bcudaError([A-Z]\w+)")
_DRIVER_NAME = re.compile(r"\bCUDA_ERROR_([A-Z_]+)")


def code_named(text: str) -> Code | None:
    """The first code whose name, that of the runtime or the driver, stands in a text."""
    for pattern, names in (_NAME, _BY_NAME), (_DRIVER_NAME, _BY_DRIVER_NAME):
        for found in pattern.finditer(text):
            if code := names.get(found[1].replace("_", "").lower()):
                return code
    return None


def code_described(text: str) -> Code | None:
    """The code whose description stands in a text; None if the text does not contain "cuda"."""
    lower = text.lower()
    if "cuda" not in lower:
        return None
    return next((code for code in CODES if code.phrase and code.phrase in lower), None)
