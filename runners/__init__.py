"""The leaf that holds a device: a stable, addressable worker over a restartable context in its own process.

`worker` has `device_worker`, `types` what a runner is, `errors` what can go wrong, `hosts` where a runner lives,
`models` runners: a real language model, and ones that tests script. Names are loaded when first asked for: the process of a
context imports this package too, and needs neither Trio nor a supervisor.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .hosts.inline import InlineHost
    from .hosts.process.host import ProcessHost
    from .hosts.thread import ThreadHost
    from .models.torch_lm import TorchLM
    from .types import (
        Completion,
        ExecuteBatch,
        FinishReason,
        RunnerInfo,
        Sampling,
        TokenChunk,
        TokenUsage,
        WeightsFile,
        token_chunk,
        with_release,
    )
    from .worker import ContextState, device_worker, rebuild, report_poison

_HOMES = {
    "Completion": "types",
    "ContextState": "worker",
    "ExecuteBatch": "types",
    "FinishReason": "types",
    "InlineHost": "hosts.inline",
    "ProcessHost": "hosts.process.host",
    "RunnerInfo": "types",
    "Sampling": "types",
    "ThreadHost": "hosts.thread",
    "TokenChunk": "types",
    "TokenUsage": "types",
    "TorchLM": "models.torch_lm",
    "WeightsFile": "types",
    "device_worker": "worker",
    "rebuild": "worker",
    "report_poison": "worker",
    "token_chunk": "types",
    "with_release": "types",
}

__all__ = [
    "Completion",
    "ContextState",
    "ExecuteBatch",
    "FinishReason",
    "InlineHost",
    "ProcessHost",
    "RunnerInfo",
    "Sampling",
    "ThreadHost",
    "TokenChunk",
    "TokenUsage",
    "TorchLM",
    "WeightsFile",
    "device_worker",
    "rebuild",
    "report_poison",
    "token_chunk",
    "with_release",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{home}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
