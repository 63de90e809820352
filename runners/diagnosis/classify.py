"""The classification of a runner's exception (D4): its type decides, then its error code; its text only nominates.

All of it is pure except the probe, which is an argument. Nothing here imports torch: its classes are looked up if torch is
loaded, because otherwise no code can have raised them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias, cast

from attrs import frozen

from .. import errors
from ..brief import attribute, causes, is_a, is_builtin, members, quoted, tag_of, text_of
from ..errors import (
    ContextPoisoned,
    DeviceError,
    InferenceError,
    LoadFailed,
    OutOfMemory,
    RunnerError,
    Unrecoverable,
)
from .cuda_codes import BY_NUMBER, Code, Kind, code_described, code_named

Probe: TypeAlias = Callable[[], bool | None]
"""Asks the device whether it answers: True if it does, False if it fails again, None if it has no device to ask."""


@frozen
class Symptom:
    """A pattern of texts without a code. Only texts of exceptions of these classes are searched for it."""

    classes: tuple[type[Exception], ...]
    pattern: re.Pattern[str]
    kind: Kind


def _symptom(kind: Kind, pattern: str, *classes: type[Exception]) -> Symptom:
    return Symptom(classes or (RuntimeError,), re.compile(pattern), kind)


SYMPTOMS = (
    # Libraries such as cuBLAS raise errors of their own, without the code of the CUDA call that failed.
    _symptom(OutOfMemory, r"\bCU[A-Z]+_(STATUS_)?ALLOC_FAILED\b|\bCUDNN_STATUS_INTERNAL_ERROR_\w*ALLOCATION_FAILED\b"),
    _symptom(
        ContextPoisoned,
        r"\bCU[A-Z]+_(STATUS_)?(EXECUTION_FAILED|INTERNAL_ERROR|MAPPING_ERROR|NOT_INITIALIZED|EXEC_FAILED|SETUP_FAILED)",
    ),
    _symptom(ContextPoisoned, r"\bNCCL error\b|\bnccl(UnhandledCuda|System|Internal|Remote)Error\b"),
    # Host memory.
    _symptom(OutOfMemory, r"DefaultCPUAllocator: (can't allocate|not enough) memory"),
    # No device for this build, this driver or this process.
    _symptom(Unrecoverable, r"^Torch not compiled with CUDA enabled$", AssertionError),
    _symptom(Unrecoverable, r"^CUDA call failed lazily at initialization with error", Exception),
    _symptom(Unrecoverable, r"No CUDA GPUs are available"),
    _symptom(Unrecoverable, r"Cannot re-initialize CUDA in forked subprocess"),
    _symptom(Unrecoverable, r"Found no NVIDIA driver on your system"),
    _symptom(Unrecoverable, r"The NVIDIA driver on your system is too old"),
    _symptom(Unrecoverable, r"CUDA driver initialization failed, you might not have a CUDA gpu"),
    _symptom(Unrecoverable, r"PyTorch was compiled without CUDA support"),
)  # fmt: skip


@frozen
class Finding:
    """The result of a judgement: the kind of the error (None: only its request fails), and its code if one is known."""

    kind: Kind
    code: int | None = None

    def error(self, found: Exception) -> Exception:
        """An error of this kind, raised from the exception; the exception itself if there is neither kind nor code."""
        if self.kind is None and self.code is None:
            return found
        error = (self.kind or RunnerError)(quoted(found))
        error.code = self.code
        error.__cause__ = found
        return error


def classify(error: Exception, probe: Probe) -> Exception:
    """Judge an exception that a runner raised (D4).

    - An `InferenceError`, or an exception with a tag, is returned as it is: its raiser has judged it.
    - Of the members of a group, the one whose directive is the most severe is returned.
    - Otherwise its type and its code decide, or those of an exception in its chain of causes.
    - If neither decides, the device is probed. If it fails again, the context is poisoned, whatever the text says; if it
      answers, the context is sound, though the text may still say that memory was lacking. If there is no device to probe,
      the text decides.

    Args:
        error: the exception.
        probe: asks the device; called at most once, and only if type and code do not decide.

    Returns:
        A `DeviceError` if the context or the device is concerned, a `RunnerError` with the code if only the request is. Both
        are raised from `error`. If there is nothing to add, `error` itself.
    """
    if is_a(error, ExceptionGroup):
        return worst(error, partial(classify, probe=_Once(probe)))
    if is_a(error, InferenceError) or tag_of(error) is not None:
        return error
    finding = _convicted(error) or _probed(_nominated(error), probe())
    return finding.error(error)


def concerns_device(error: Exception) -> bool:
    """Whether an exception may concern the device, its context or a lack of memory, so that the same work is not tried again.

    Its class, tag and code decide as in `classify`. The device is not probed, so that a text which nominates counts too; the host
    that gets the exception judges it.
    """
    found = classify(error, lambda: None)
    return is_a(found, DeviceError) or by_tag(found) is not None


class _Once:
    """A probe that asks once for all members of a group, because a device that hangs takes the whole timeout each time."""

    def __init__(self, probe: Probe) -> None:
        self._probe = probe
        self._answers: list[bool | None] = []

    def __call__(self) -> bool | None:
        if not self._answers:
            self._answers.append(self._probe())
        return self._answers[0]


def worst(group: Exception, judge: Callable[[Exception], Exception]) -> Exception:
    """The judged member of a group for which D3 has the most severe directive; the first one if there are several.

    A group that is nested so deeply that no other exception is found in it is a `RunnerError`.
    """
    assert issubclass(type(group), ExceptionGroup)
    found = [judge(cast("Exception", error)) for error in members(group) if is_a(error, Exception)]
    return max(found, key=_severity) if found else RunnerError(quoted(group))


_SEVERITY = {"device.oom": 1, "device.poisoned": 2, "device.unrecoverable": 3}


def _severity(error: Exception) -> int:
    """The rank of the directive that D3 has for an error: none, Resume, Restart, Stop, Escalate."""
    family, *below = (tag_of(error) or "").split(".")
    return _SEVERITY.get(f"device.{below[0]}" if below else "", 4) if family == "device" else 0


def _probed(nominee: Finding | None, answer: bool | None) -> Finding:
    """The finding from the text, corrected by the answer of the probe."""
    nominee = nominee or Finding(None)
    if answer is None or (answer and nominee.kind is OutOfMemory):
        return nominee
    return Finding(None if answer else ContextPoisoned, nominee.code)


# --- what decides


def _convicted(error: BaseException) -> Finding | None:
    """The finding by type and code, of the exception or of one in its chain of causes."""
    return next((finding for link in causes(error) if (finding := _by_type(link))), None)


def _by_type(error: BaseException) -> Finding | None:
    if is_a(error, MemoryError):
        return Finding(OutOfMemory)
    for where, name, judge in _TYPES:
        cls = _loaded(where, name)
        if cls is not None and is_a(error, cls):
            return judge(error)
    return None


def _loaded(module: str, name: str) -> type[BaseException] | None:
    """A class of a loaded module; None if there is none, as older versions of torch lack some."""
    cls = attribute(sys.modules.get(module), name)
    return cls if is_a(cls, type) and issubclass(cls, BaseException) else None


def _by_code(error: Any) -> Finding | None:
    """The finding by the attribute that torch sets on its own exceptions."""
    code = attribute(error, "error_code")
    return _of(code) if type(code) is int else None


def _by_code_in_brackets(error: Any) -> Finding | None:
    """The finding by the code that `CudaError` appends to its text."""
    found = re.search(r"\((\d{1,9})\)$", text_of(error))
    return _of(int(found[1])) if found else None


def _of(number: int) -> Finding:
    code = BY_NUMBER.get(number)
    return Finding(code.kind if code else None, number)


_TYPES: tuple[tuple[str, str, Callable[[Any], Finding | None]], ...] = (
    ("torch", "OutOfMemoryError", lambda _: Finding(OutOfMemory, 2)),
    ("torch", "AcceleratorError", _by_code),
    ("torch.cuda", "CudaError", _by_code_in_brackets),
    # The context may be sound, but the group of processes that it belongs to is broken.
    ("torch.distributed", "DistError", lambda _: Finding(ContextPoisoned)),
)


# --- what nominates


def _nominated(error: Exception) -> Finding | None:
    """The finding by text: the name of a code, the description of a code, or a symptom."""
    text = text_of(error)
    if _may_speak_of_cuda(error) and (code := _code_in(text)):
        return Finding(code.kind, code.number)
    for symptom in SYMPTOMS:
        if is_a(error, *symptom.classes) and symptom.pattern.search(text):
            return Finding(symptom.kind)
    return None


def _may_speak_of_cuda(error: Exception) -> bool:
    """Whether the text may name a CUDA code: torch and its extensions raise `RuntimeError` or types of their own.

    A `ValueError`, for example, may quote any text.
    """
    return is_a(error, RuntimeError) or not is_builtin(type(error))


def _code_in(text: str) -> Code | None:
    return code_named(text) or code_described(text)


_BY_TAG = {
    str(cls.tag): cls for cls in (DeviceError, ContextPoisoned, OutOfMemory, Unrecoverable, LoadFailed)
}


def by_tag(error: BaseException) -> type[DeviceError] | None:
    """The class of `DeviceError` that its tag stands for, by dotted fallback; None if the tag does not belong to a device (D3)."""
    tag = tag_of(error)
    while tag and tag not in _BY_TAG:
        tag = tag.rpartition(".")[0]
    return _BY_TAG.get(tag or "")


def code_of(error: BaseException) -> int | None:
    """The code that the device or the server gave; None if there is none that fits into msgpack."""
    code = attribute(error, "code")
    return code if type(code) is int and -(2**63) <= code < 2**64 else None


_KNOWN: frozenset[type[InferenceError]] = frozenset(
    cls for cls in vars(errors).values() if is_a(cls, type) and issubclass(cls, InferenceError)
)
_LOOKED_AT = (
    "__class__",
    "__getattribute__",
    "__setattr__",
    "__eq__",
    "__hash__",
    "__bool__",
    "__len__",
    "__traceback__",
    "__cause__",
    "__context__",
    "__suppress_context__",
)
"""The attributes that contextlib, nurseries and supervisors use of an exception that passes through them."""


def sound(error: InferenceError) -> InferenceError:
    """An error that can be raised anywhere: itself, or a plain one if its class redefines an attribute of `_LOOKED_AT`."""
    kind = type(error)
    if kind in _KNOWN or not any(name in vars(cls) for cls in _own(kind) for name in _LOOKED_AT):
        return error
    plain: InferenceError = renewed(error)
    plain.__cause__ = error
    return plain


def renewed(error: InferenceError) -> Any:
    """A copy with the text, code and tag of an error, of the nearest class of ours whose only argument is a text."""
    kind: type[InferenceError] = next(
        cls for cls in type(error).__mro__ if cls in _KNOWN and cls is not errors.ContextLost
    )
    plain = kind(text_of(error))
    plain.code = code_of(error)
    if (tag := tag_of(error)) is not None and tag != kind.tag:
        plain.tag = tag  # type: ignore[misc]  # for this instance only
    return plain


def _own(kind: type[Any]) -> list[type[Any]]:
    """The classes of the method resolution order that are neither ours nor builtin."""
    return [cls for cls in kind.__mro__ if cls not in _KNOWN and not is_builtin(cls)]
