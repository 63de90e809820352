"""A runner on a real device that comes to real harm. A context process imports this; torch only while it loads."""

from __future__ import annotations

import ctypes

import attrs

from runners.types import FinishReason, RunnerInfo, TokenChunk

KERNELS = rb"""
.version 7.0
.target sm_75
.address_size 64

.visible .entry wild()
{
    .reg .b64 %p;
    .reg .b32 %r;
    mov.u64 %p, 4096;
    mov.u32 %r, 1;
    st.global.u32 [%p], %r;
    ret;
}

.visible .entry crooked(.param .u64 where)
{
    .reg .b64 %p;
    .reg .b32 %r;
    ld.param.u64 %p, [where];
    add.u64 %p, %p, 1;
    mov.u32 %r, 1;
    st.global.u32 [%p], %r;
    ret;
}

.visible .entry trapped()
{
    trap;
    ret;
}

.visible .entry spin()
{
    .reg .b64 %c;
    .reg .pred %q;
again:
    mov.u64 %c, %clock64;
    setp.ne.u64 %q, %c, 0;
    @%q bra again;
    ret;
}
"""
"""In PTX, which every driver compiles: a store nowhere, a misaligned one, a trap, a loop without an end."""


def launch(name, *pointers):
    """Launch one of the kernels on torch's stream; what it does shows at the next synchronise."""
    import torch

    driver = ctypes.CDLL("libcuda.so.1")
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
    values = [ctypes.c_uint64(pointer) for pointer in pointers]
    arguments = (ctypes.c_void_p * (len(values) or 1))(*(ctypes.addressof(value) for value in values))
    for result in (
        driver.cuModuleLoadData(ctypes.byref(module), KERNELS + b"\0"),
        driver.cuModuleGetFunction(ctypes.byref(function), module, name.encode()),
        driver.cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, stream, arguments, None),
    ):
        assert result == 0, f"the driver refused to launch {name}: {result}"


def assertion(torch, device):
    """A lookup beyond the end: torch's own kernels assert."""
    torch.zeros(2, device=device)[torch.tensor([5], device=device)]
    torch.cuda.synchronize()


def wild(torch, device):
    launch("wild")
    torch.cuda.synchronize()


def crooked(torch, device):
    launch("crooked", torch.zeros(4, device=device).data_ptr())
    torch.cuda.synchronize()


def trapped(torch, device):
    launch("trapped")
    torch.cuda.synchronize()


def spin(torch, device):
    launch("spin")
    torch.cuda.synchronize()


def greedy(torch, device):
    """More than the device has."""
    torch.empty(2 * torch.cuda.get_device_properties(device).total_memory, dtype=torch.uint8, device=device)


def silent(torch, device):
    """A poison whose text is lost on its way, as at the border of an extension."""
    try:
        assertion(torch, device)
    except RuntimeError:
        raise RuntimeError("the step failed") from None


def secondary(torch, device):
    """A poison that is met by the wrong one, cuBLAS here: its first report went unheard."""
    square = torch.ones(8, 8, device=device)
    (square @ square).sum().item()
    try:
        assertion(torch, device)
    except RuntimeError:
        pass
    square @ square
    torch.cuda.synchronize()


def mistaken(torch, device):
    """A mistake of the program's, on a sound device."""
    torch.ones(2, device=device) @ torch.ones(3, device=device)


HARMS = {
    harm.__name__: harm
    for harm in (assertion, wild, crooked, trapped, spin, greedy, silent, secondary, mistaken)
}


@attrs.frozen
class OnDevice:
    """Its tokens are computed on the device, each from the one before.

    Args:
        harm: which, instead of the sixth token of the request `victim`.
        incarnation: only in this one; None is in each.
        hold: bytes that it allocates while loading.
    """

    harm: str | None = None
    incarnation: int | None = None
    hold: int = 0

    def build(self, start):
        return _OnDevice(self, start)


class _OnDevice:
    info = RunnerInfo(streams=8, can_continue=True, runtime="torch")

    def __init__(self, spec, start):
        import torch

        self.torch, self.device = torch, torch.device(start.device)
        self.free = torch.cuda.mem_get_info(self.device)[0]
        self.held = torch.empty(spec.hold, dtype=torch.uint8, device=self.device).fill_(1)
        ours = spec.harm is not None and spec.incarnation in (None, start.incarnation)
        self.harm = HARMS[spec.harm] if ours else None

    def execute(self, batch):
        return self.continue_from(batch, ())

    def continue_from(self, batch, accepted):
        made = accepted[-1] if accepted else batch.sampling.seed
        state = self.torch.tensor(made, device=self.device)
        for index in range(len(accepted), batch.sampling.max_tokens):
            if index == 5 and self.harm and batch.request_id == "victim":
                self.harm(self.torch, self.device)
            state = (state * 1103515245 + 12345) % 2**31
            last = FinishReason.LENGTH if index == batch.sampling.max_tokens - 1 else None
            yield TokenChunk(
                request_id=batch.request_id,
                index=index,
                token_ids=(int(state.item()),),
                text=f"{self.free}",
                finish_reason=last,
            )

    def rebuild(self, cause):
        pass

    def close(self):
        pass


def expected(batch):
    """What `OnDevice` answers."""
    tokens, state = [], batch.sampling.seed
    for _ in range(batch.sampling.max_tokens):
        state = (state * 1103515245 + 12345) % 2**31
        tokens.append(state)
    return tuple(tokens)
