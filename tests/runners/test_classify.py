"""What a runner's exception is: type, then code, then text that only nominates (D4)."""

import os
import subprocess
import sys
import threading
import types

import pytest
import torch
import torch.distributed
from hypothesis import given
from hypothesis import strategies as st

from runners.diagnosis.classify import SYMPTOMS, classify
from runners.diagnosis.cuda_codes import BY_NUMBER, CODES, code_named
from runners.diagnosis.probe import DeviceProbe
from runners.errors import (
    BadRequest,
    ContextPoisoned,
    DeviceError,
    LoadFailed,
    OutOfMemory,
    RunnerError,
    Unrecoverable,
)

TORCH = """CUDA error: {phrase}
Search for `cudaError{name}' in https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__TYPES.html for more information.
CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be incorrect.
For debugging consider passing CUDA_LAUNCH_BLOCKING=1
Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.
"""
CPU_OUT_OF_MEMORY = """[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: \
you tried to allocate 4503599627370496 bytes. Error code 12 (Cannot allocate memory)"""
OLD_TORCH = TORCH.replace("Search for `cudaError{name}' in", "See")

# NVIDIA's documentation of these: the process must be terminated and relaunched.
STICKY = {226, 700, 702, 710, 714, 715, 716, 717, 718, 719, 721, 810, 911}
NEVER_SEEN = {709, 999, *range(900, 909)}  # not documented, but no context was ever seen to go on after one
HARDWARE = {214, 220}
PASSING = {3, 4, 46, 802, 805, 806, 807, 808, 809}
POISON = STICKY | NEVER_SEEN | HARDWARE | PASSING
GONE = {34, 35, 36, 100, 101, 102, 103, 803, 804}
MISTAKES = {1, 9, 98, 200, 201, 209, 218, 222, 400, 401, 500, 600, 701, 720, 800, 801, 912, 913, 914, 915}


class Extension(Exception):
    """As Triton, CUTLASS and others have: a type of their own, no code."""


def accelerator_error(code, text=""):
    """As torch raises it: the code is an attribute of the instance."""
    error = torch.AcceleratorError(text)
    error.error_code = code
    return error


def answers():
    return True


def fails():
    return False


def nothing_to_ask():
    return None


def not_asked():
    raise AssertionError("type and code decide without a probe")


def kind(error):
    """What it was found to be; None for the request's own."""
    return type(error) if isinstance(error, DeviceError) else None


def named(code):
    return TORCH.format(phrase=code.phrase or "?", name=code.name)


# --- the table


def test_the_table_has_a_class_for_each_known_code():
    """D4: The classes are codes that end a process, those of the hardware, those that pass, and mistakes of a program."""
    kinds = {code.number: code.kind for code in CODES}
    assert kinds == {
        **dict.fromkeys(POISON, ContextPoisoned),
        **dict.fromkeys(GONE, Unrecoverable),
        **dict.fromkeys(MISTAKES),
        2: OutOfMemory,
    }


def test_numbers_names_and_phrases_are_unambiguous():
    """A number, a name or a phrase means one code."""
    for column in ("number", "name", "phrase"):
        values = [value for code in CODES if (value := getattr(code, column)) is not None]
        assert len(values) == len(set(values))
    phrases = [code.phrase for code in CODES if code.phrase]
    assert not [(a, b) for a in phrases for b in phrases if a != b and a in b]


# --- type and code


@pytest.mark.parametrize("code", CODES, ids=lambda code: code.name)
def test_a_code_decides_without_a_probe_and_whatever_the_text(code):
    """D4: Torch's own exception carries the code; neither the text nor the device is asked."""
    found = accelerator_error(
        code.number, "CUDA error: out of memory, an illegal memory access was encountered"
    )
    error = classify(found, not_asked)
    assert kind(error) is code.kind
    assert (error.code, error.__cause__) == (code.number, found)
    assert isinstance(error, RunnerError) is (code.kind is None)


def test_a_code_that_is_in_no_table_is_the_requests_own():
    """D4: Any other code is a mistake of the program: the context goes on, and the error has the code."""
    error = classify(accelerator_error(12345), not_asked)
    assert (type(error), error.code) == (RunnerError, 12345)


@pytest.mark.parametrize(
    ("found", "expected", "code"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), OutOfMemory, 2),
        (torch.cuda.OutOfMemoryError("CUDA out of memory."), OutOfMemory, 2),
        (MemoryError(), OutOfMemory, None),
        (torch.distributed.DistBackendError("NCCL error in: x.cpp:1"), ContextPoisoned, None),
        (torch.distributed.DistNetworkError("connection reset"), ContextPoisoned, None),
    ],
)
def test_a_type_decides_without_a_probe(found, expected, code):
    """D4: The type comes before code and text."""
    error = classify(found, not_asked)
    assert (type(error), error.code, error.__cause__) == (expected, code, found)


def test_torchs_error_by_number_is_read_from_where_it_puts_the_number():
    """D4: `torch.cuda.CudaError` has no attribute; it ends in its code."""
    found = torch.cuda.CudaError.__new__(
        torch.cuda.CudaError, "an illegal memory access was encountered (700)"
    )
    assert (type(classify(found, not_asked)), classify(found, not_asked).code) == (ContextPoisoned, 700)


def test_the_cause_of_an_exception_counts():
    """D4: A library that wraps the device's exception does not hide it; an exception that was merely being handled does not count."""
    wrapped = Extension("the step failed")
    wrapped.__cause__ = accelerator_error(719)
    assert classify(wrapped, not_asked).code == 719
    handled = Extension("a fallback failed")
    handled.__context__ = torch.OutOfMemoryError("handled")
    assert classify(handled, nothing_to_ask) is handled


def test_causes_in_a_circle_end():
    """An exception whose causes form a circle is judged all the same."""
    one, two = Extension("one"), Extension("two")
    one.__cause__, two.__cause__ = two, one
    assert classify(one, nothing_to_ask) is one


@pytest.mark.parametrize("error", [BadRequest("x"), ContextPoisoned("x"), OutOfMemory("x"), LoadFailed("x")])
def test_an_exception_that_has_a_verdict_keeps_it(error):
    """R1: The tag that an exception carries itself comes first, and `InferenceError`s are raised on purpose."""
    assert classify(error, not_asked) is error


def test_a_tag_of_a_foreign_exception_stays():
    """R1: An exception of another library that carries a tag keeps it."""
    error = Extension("CUDA error: device-side assert triggered")
    error.tag = "mine"
    assert classify(error, not_asked) is error


def test_the_worst_member_of_a_group_counts():
    """R3: An async runner's nursery raises groups; the most severe member is the failure."""
    members = [ValueError("x"), torch.OutOfMemoryError("x"), accelerator_error(700), accelerator_error(100)]
    for most in range(1, 5):
        group = ExceptionGroup("", [ExceptionGroup("", members[:most]), KeyError("x")])
        assert (
            kind(classify(group, nothing_to_ask))
            is (None, OutOfMemory, ContextPoisoned, Unrecoverable)[most - 1]
        )
    own = BadRequest("x")
    assert classify(ExceptionGroup("", [own]), not_asked) is own


def test_a_group_asks_its_device_once():
    """D4: Each question may take as long as a device that hangs lets it."""
    asked = []

    def probe():
        asked.append("does it answer?")
        return True

    members = [RuntimeError("x"), RuntimeError("y"), ExceptionGroup("", [RuntimeError("z")])]
    assert kind(classify(ExceptionGroup("", members), probe)) is None
    assert len(asked) == 1


# --- text, and the probe


@pytest.mark.parametrize("code", CODES, ids=lambda code: code.name)
@pytest.mark.parametrize("cls", [RuntimeError, Extension])
def test_a_name_in_the_text_nominates_and_the_probe_convicts(code, cls):
    """D4: Extensions lose the code and keep torch's text. Only a failing device is poisoned; without one to ask, the text counts."""
    text = named(code)
    told = classify(cls(text), nothing_to_ask)
    assert (kind(told), told.code) == (code.kind, code.number)
    convicted = classify(cls(text), fails)
    assert (type(convicted), convicted.code) == (ContextPoisoned, code.number)
    acquitted = classify(cls(text), answers)
    assert kind(acquitted) is (OutOfMemory if code.kind is OutOfMemory else None)
    assert acquitted.code == code.number


@pytest.mark.parametrize("code", [code for code in CODES if code.phrase], ids=lambda code: code.name)
@pytest.mark.parametrize("text", [OLD_TORCH, "Triton Error [CUDA]: {phrase}"])
def test_a_phrase_in_the_text_nominates_as_a_name_does(code, text):
    """D4: Older torch and Triton give no name in the text."""
    if "triton" in text.lower() and code.number == 999:
        return
    found = RuntimeError(text.format(phrase=code.phrase.removeprefix("cuda error: "), name=code.name))
    assert (kind(classify(found, nothing_to_ask)), classify(found, nothing_to_ask).code) == (
        code.kind,
        code.number,
    )
    assert type(classify(found, fails)) is ContextPoisoned
    assert kind(classify(found, answers)) is (OutOfMemory if code.kind is OutOfMemory else None)


@pytest.mark.parametrize("code", CODES, ids=lambda code: code.name)
def test_torchs_advice_on_assertions_is_no_assertion(code):
    """Every text of torch's ends with advice that mentions device-side assertions."""
    found = RuntimeError(OLD_TORCH.format(phrase="invalid argument", name=code.name))
    assert classify(found, nothing_to_ask) is found


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("[700] Call to cuMemcpyDtoH results in CUDA_ERROR_ILLEGAL_ADDRESS", 700),
        ("CUDA_ERROR_LAUNCH_FAILED: unspecified launch failure", 719),
        ("CUDA_ERROR_OUT_OF_MEMORY", 2),
        ("CUDA_ERROR_ECC_UNCORRECTABLE", 214),
        ("CUDA_ERROR_NO_DEVICE", 100),
        ("cudaErrorIllegalAddress: an illegal memory access was encountered", 700),
        ("cudaErrorNobodyKnows, then cudaErrorAssert", 710),
    ],
)
def test_the_drivers_names_are_known_too(text, number):
    """Numba and others use the driver; its names differ from the runtime's, its numbers do not."""
    assert code_named(text) is BY_NUMBER[number]


SAID = [
    (RuntimeError, "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(...)`", ContextPoisoned),
    (RuntimeError, "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`", ContextPoisoned),
    (RuntimeError, "CUDA error: CUBLAS_STATUS_INTERNAL_ERROR when calling `cublasGemmEx(...)`", ContextPoisoned),
    (RuntimeError, "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", OutOfMemory),
    (RuntimeError, "CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasGemmEx(...)`", None),
    (RuntimeError, "cuDNN error: CUDNN_STATUS_MAPPING_ERROR", ContextPoisoned),
    (RuntimeError, "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", ContextPoisoned),
    (RuntimeError, "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED_CUDART", ContextPoisoned),
    (RuntimeError, "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR", ContextPoisoned),
    (RuntimeError, "cuDNN error: CUDNN_STATUS_ALLOC_FAILED", OutOfMemory),
    (RuntimeError, "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", OutOfMemory),
    (RuntimeError, "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED", None),
    (RuntimeError, "cusolver error: CUSOLVER_STATUS_INTERNAL_ERROR, when calling `cusolverDnCreate`", ContextPoisoned),
    (RuntimeError, "cuFFT error: CUFFT_ALLOC_FAILED", OutOfMemory),
    (RuntimeError, "cuFFT error: CUFFT_EXEC_FAILED", ContextPoisoned),
    (RuntimeError, "NCCL error in: ProcessGroupNCCL.cpp:1, unhandled cuda error", ContextPoisoned),
    (RuntimeError, "ncclRemoteError: a call failed possibly due to a network error", ContextPoisoned),
    (RuntimeError, "ncclUnhandledCudaError: Call to CUDA function failed.", ContextPoisoned),
    (RuntimeError, CPU_OUT_OF_MEMORY, OutOfMemory),
    (RuntimeError, "DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes.", OutOfMemory),
    (AssertionError, "Torch not compiled with CUDA enabled", Unrecoverable),
    (RuntimeError, "No CUDA GPUs are available", Unrecoverable),
    (RuntimeError, "Cannot re-initialize CUDA in forked subprocess. To use CUDA with multiprocessing, …", Unrecoverable),
    (RuntimeError, "Found no NVIDIA driver on your system. Please check that you have …", Unrecoverable),
    (RuntimeError, "The NVIDIA driver on your system is too old (found version 1).", Unrecoverable),
    (RuntimeError, "CUDA driver initialization failed, you might not have a CUDA gpu.", Unrecoverable),
    (RuntimeError, "PyTorch was compiled without CUDA support", Unrecoverable),
    (torch.cuda.DeferredCudaCallError, "CUDA call failed lazily at initialization with error: x", Unrecoverable),
    (RuntimeError, "Expected all tensors to be on the same device, but found cuda:0 and cpu!", None),
    (RuntimeError, "size mismatch", None),
    (ValueError, "CUDA error: device-side assert triggered", None),
    (KeyError, "cudaErrorIllegalAddress", None),
    (ValueError, "Torch not compiled with CUDA enabled", None),
]  # fmt: skip


@pytest.mark.parametrize(("cls", "text", "expected"), SAID, ids=[text[:60] for _, text, _ in SAID])
def test_symptoms_nominate_only_in_the_classes_that_show_them(cls, text, expected):
    """D4, R1: A text counts only in an exception of its class; an exception that torch did not raise may quote any text."""
    assert kind(classify(cls(text), nothing_to_ask)) is expected
    assert kind(classify(cls(text), answers)) is (OutOfMemory if expected is OutOfMemory else None)
    assert type(classify(cls(text), fails)) is ContextPoisoned


def test_every_symptom_is_shown_above():
    """The table has no row that no test has seen."""
    for symptom in SYMPTOMS:
        assert any(issubclass(cls, symptom.classes) and symptom.pattern.search(text) for cls, text, _ in SAID)


@given(st.text(), st.sampled_from([RuntimeError, ValueError, KeyError, Extension, OSError]))
def test_no_text_convicts_a_device_that_answers(text, cls):
    """D4: Whatever the text, a device that answers is not poisoned, and the exception stays what it was."""
    error = classify(cls(text + "CUDA error: device-side assert triggered"), answers)
    assert not isinstance(error, ContextPoisoned)


@given(st.text(), st.sampled_from([RuntimeError, ValueError, KeyError, Extension, OSError]))
def test_a_device_that_fails_again_is_poisoned_whatever_was_raised(text, cls):
    """D4: An error that has lost its text cannot hide a dead context."""
    assert type(classify(cls(text), fails)) is ContextPoisoned


class Unspeakable(Exception):
    def __str__(self):
        raise RuntimeError("no")


def test_an_exception_that_cannot_be_shown_is_judged():
    """Whatever a runner raises."""
    assert str(classify(Unspeakable(), fails)) == "Unspeakable: (its text cannot be shown)"


def test_torchs_own_exceptions_on_this_machine_are_what_the_table_expects():
    """B1 as it is installed here: CPU out of memory is a RuntimeError, a build without CUDA an AssertionError."""
    with pytest.raises(RuntimeError) as found:
        torch.empty(1 << 50)
    assert kind(classify(found.value, DeviceProbe("cpu"))) is OutOfMemory
    if not torch.backends.cuda.is_built():
        with pytest.raises(AssertionError) as found:
            torch.zeros(1, device="cuda")
        assert kind(classify(found.value, DeviceProbe("cuda:0"))) is Unrecoverable


# --- asking the device


class FakeCuda:
    """A `torch.cuda` whose synchronise follows a list, one entry for each call."""

    def __init__(self, *words):
        self.words = list(words)
        self.asked = []
        self.forever = threading.Event()

    def is_initialized(self):
        return True

    def synchronize(self, device):
        self.asked.append(device)
        match self.words.pop(0):
            case "fail":
                raise RuntimeError("CUDA error: unspecified launch failure")
            case "hang":
                self.forever.wait()


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["fine"], True),
        (["fail", "fine"], True),
        (["fail", "fail"], False),
        (["hang"], False),
        (["fail", "hang"], False),
    ],
)
def test_a_device_answers_or_fails_again_or_hangs(monkeypatch, words, answer):
    """D4: A synchronise that fails *again* convicts, and so does one that does not come back in time."""
    cuda = FakeCuda(*words)
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=cuda))
    assert DeviceProbe("cuda:3", timeout=1.0 if "hang" in words else 60.0)() is answer
    assert cuda.asked == ["cuda:3"] * len(words)
    cuda.forever.set()


def test_a_device_without_a_context_is_not_asked(monkeypatch):
    """D4: Asking never makes a context: neither without torch, nor before torch has made one."""
    assert DeviceProbe("cuda:0")() is None
    monkeypatch.setitem(sys.modules, "torch", None)
    assert DeviceProbe("cuda:0")() is None


def test_classifying_imports_no_torch():
    """The child of a runner without torch never pays for it."""
    code = """
import sys
from runners.diagnosis.classify import classify
from runners.diagnosis.probe import DeviceProbe
print(type(classify(RuntimeError("CUDA error: device-side assert triggered"), DeviceProbe("cuda"))).__name__)
print({"torch", "trio", "msgspec"} & set(sys.modules))
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["ContextPoisoned", "set()"]
