"""Device workers: a stable address in front of a restartable context, which runs in a process of its own.

`worker` has `device_worker`, `types` the interface of a runner, `errors` the errors, `hosts` the places where a runner can run,
and `models` the runners: adapters for models of users, language models, and scripted ones for tests. A name is imported when
it is first used, because the process of a context imports this package too, and needs neither Trio nor a supervisor.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .hosts.engine import EngineHost
    from .hosts.inline import InlineHost
    from .hosts.process.host import ProcessHost
    from .hosts.remote.ray import RayHost
    from .hosts.remote.ssh import SshHost
    from .hosts.thread import ThreadHost
    from .models.batched import batched_runner
    from .models.causal import causal_runner
    from .models.openai import OpenAIModel
    from .models.torch_lm import TorchLM
    from .models.transformers import TransformersLM
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
    from .worker import ContextState, device_worker, rebuild, replace, report_poison

_HOMES = {
    "Completion": "types",
    "ContextState": "worker",
    "EngineHost": "hosts.engine",
    "ExecuteBatch": "types",
    "FinishReason": "types",
    "InlineHost": "hosts.inline",
    "OpenAIModel": "models.openai",
    "ProcessHost": "hosts.process.host",
    "RayHost": "hosts.remote.ray",
    "RunnerInfo": "types",
    "Sampling": "types",
    "SshHost": "hosts.remote.ssh",
    "ThreadHost": "hosts.thread",
    "TokenChunk": "types",
    "TokenUsage": "types",
    "TorchLM": "models.torch_lm",
    "TransformersLM": "models.transformers",
    "WeightsFile": "types",
    "batched_runner": "models.batched",
    "causal_runner": "models.causal",
    "device_worker": "worker",
    "rebuild": "worker",
    "replace": "worker",
    "report_poison": "worker",
    "token_chunk": "types",
    "with_release": "types",
}

__all__ = [
    "Completion",
    "ContextState",
    "EngineHost",
    "ExecuteBatch",
    "FinishReason",
    "InlineHost",
    "OpenAIModel",
    "ProcessHost",
    "RayHost",
    "RunnerInfo",
    "Sampling",
    "SshHost",
    "ThreadHost",
    "TokenChunk",
    "TokenUsage",
    "TorchLM",
    "TransformersLM",
    "WeightsFile",
    "batched_runner",
    "causal_runner",
    "device_worker",
    "rebuild",
    "replace",
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
