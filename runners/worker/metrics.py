"""The metrics of device workers for Prometheus; `docs/operating/metrics.md` lists them. Needs the extra `prometheus`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final
from weakref import ref

from attrs import frozen
from prometheus_client import Counter, Histogram
from prometheus_client.metrics_core import GaugeMetricFamily, Metric

from supervise import Tree
from supervise.sinks.prometheus import PrometheusSink

from ..types import TokenChunk
from .group import Group, measure
from .meter import OUTCOMES, RequestOutcome

_WAITS: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
"""Seconds: a request may begin at once, or wait until a model has loaded anew."""

_GAPS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
"""Seconds: a step of a model takes some milliseconds, and the loss of a context as long as the next one needs to be up."""


class WorkerMetrics:
    """The metrics of all device workers in the trees of a `PrometheusSink`.

    The sink makes it by itself if one of its trees declares a device worker. For workers that are only added at run time call
    `sink.include(WorkerMetrics)`. Requests are counted from `sink.attach(tree)` on. All workers with the same label `path`,
    such as the members of a pool, are measured together.
    """

    def __init__(self, sink: PrometheusSink) -> None:
        self._label = sink.label
        self._groups: list[tuple[str, ref[Group]]] = []
        registry = sink.registry

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"runners_{name}", text, ["path", *labels], registry=registry)

        def histogram(name: str, text: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(f"runners_{name}_seconds", text, ["path"], registry=registry, buckets=buckets)

        registry.register(self)
        self._requests = counter("requests", "Requests that have ended, by how.", "outcome")
        self._tokens = counter("tokens", "Tokens given to callers.")
        self._replayed = counter("replayed_tokens", "Tokens fed to another session to continue a stream.")
        self._waits = histogram(
            "queue_wait", "From sending a request until it begins in a runner first.", _WAITS
        )
        self._firsts = histogram("first_chunk", "From sending a request until its first chunk.", _WAITS)
        self._gaps = histogram("gap", "Between two deliveries of chunks to one stream.", _GAPS)

    def attach(self, tree: Tree, /) -> None:
        """Measure the workers of this running tree from now on."""
        measure(tree, self)

    def meter(self, path: str, group: Group) -> _Meter:
        """The meter of the worker at this path; all its counters begin at 0."""
        label = self._label(path)
        self._groups = [(other, known) for other, known in self._groups if known() is not None]
        self._groups.append((label, ref(group)))
        return _Meter(
            {outcome: self._requests.labels(label, outcome) for outcome in OUTCOMES},
            self._tokens.labels(label),
            self._replayed.labels(label),
            self._waits.labels(label),
            self._firsts.labels(label),
            self._gaps.labels(label),
        )

    # --- what a registry asks for

    def describe(self) -> Iterator[Metric]:
        """The gauge without values, which a registry checks for duplicates."""
        yield _places()

    def collect(self) -> Iterator[Metric]:
        """The places for streams, counted now, also from another thread: lengths are read at one stroke each."""
        places: dict[str, tuple[int, int]] = {}
        for label, known in self._groups:
            group = known()
            taken, free = places.get(label, (0, 0))
            for context in () if group is None else list(group.contexts.values()):
                streams = len(context.open)
                taken += streams
                free += max(0, context.session.info.streams - streams)
            places[label] = taken, free
        family = _places()
        for label, (taken, free) in places.items():
            family.add_metric([label, "open"], taken)
            family.add_metric([label, "free"], free)
        yield family


@frozen
class _Meter:
    """See `meter.Meter`: the series of one label."""

    requests: dict[RequestOutcome, Counter]
    tokens: Counter
    replayed: Counter
    waits: Histogram
    firsts: Histogram
    gaps: Histogram

    def begun(self, waited: float) -> None:
        """See `meter.Meter.begun`."""
        self.waits.observe(waited)

    def given(
        self, chunks: Sequence[TokenChunk], *, first: float | None, gap: float | None, replayed: int
    ) -> None:
        """See `meter.Meter.given`."""
        self.tokens.inc(sum(len(chunk.token_ids) for chunk in chunks))
        if replayed:
            self.replayed.inc(replayed)
        if first is not None:
            self.firsts.observe(first)
        if gap is not None:
            self.gaps.observe(gap)

    def ended(self, how: RequestOutcome) -> None:
        """See `meter.Meter.ended`."""
        self.requests[how].inc()


def _places() -> GaugeMetricFamily:
    return GaugeMetricFamily(
        "runners_places", "Places for streams in the contexts that serve.", labels=["path", "state"]
    )
