"""The sinks of a tree that is operated: its history, and its metrics if prometheus-client is installed."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING

from attrs import frozen

from .._core.spec import Pool, Supervisor
from .._trio.tree import Tree
from ..events import Sink
from .history import History

if TYPE_CHECKING:
    from ..sinks.prometheus import PrometheusSink


@frozen(eq=False)
class Observers:
    """The sinks of one tree.

    Args:
        history: its last events.
        metrics: None if prometheus-client is not installed.
    """

    history: History
    metrics: PrometheusSink | None

    @classmethod
    def of(cls, spec: Supervisor | Pool) -> Observers:
        """Those for a declared tree."""
        if find_spec("prometheus_client") is None:
            return cls(History(), None)
        from ..sinks.prometheus import PrometheusSink  # noqa: PLC0415 - It needs prometheus-client, which is an extra.

        return cls(History(), PrometheusSink(spec))

    @property
    def sinks(self) -> list[Sink]:
        """All of them."""
        return [self.history] if self.metrics is None else [self.history, self.metrics]

    @property
    def expose(self) -> Callable[[str], tuple[bytes, str]] | None:
        """Gives the body and the content type of the metrics for a header `Accept`; None if there are none."""
        return None if self.metrics is None else self.metrics.expose

    def attach(self, tree: Tree) -> None:
        """Let the metrics read the status of the running tree."""
        if self.metrics is not None:
            self.metrics.attach(tree)
