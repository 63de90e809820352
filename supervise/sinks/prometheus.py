"""Metrics for Prometheus: counters and times from the events of a tree, and gauges from its status at each scrape."""

from __future__ import annotations

import threading
from collections import Counter as Counts
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final, Protocol, get_args
from weakref import ref

import trio
from attrs import frozen

from .._core._brief import brief, printable
from .._core._check import check_number, is_a
from .._core.node import State
from .._core.spec import Child, Mailbox, Pool, Spec, Supervisor
from .._core.status import Status
from ..events import (
    Decided,
    Event,
    Overdue,
    Sink,
    SinkFailed,
    Starting,
    StartOverdue,
    StopError,
)
from ._intervals import Intervals

try:
    from prometheus_client import CollectorRegistry, Counter, Histogram
    from prometheus_client.exposition import choose_encoder
    from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        "supervise.sinks.prometheus needs prometheus-client: pip install 'trio-supervise[prometheus]'"
    ) from missing

_STATES: Final[tuple[str, ...]] = get_args(State)

_BUCKETS: Final = (0.001, 0.01, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
"""Seconds: a child may start in a millisecond, and a model may take minutes to load."""

_OTHER: Final = "other"

_Families = dict[str, GaugeMetricFamily | CounterMetricFamily]


class _Tree(Protocol):
    def status(self) -> Status: ...
    def _in_force(self, path: str, /) -> Spec | None: ...
    def subscribe(self, sink: Sink) -> Callable[[], None]: ...


class MoreMetrics(Protocol):
    """The metrics that a kind of node has beside those of every node, such as a device worker."""

    def attach(self, tree: Any, /) -> None:
        """Measure this running tree too, a `Tree`; called in its Trio run, also several times."""
        ...


@frozen(eq=False)
class _Attached:
    """A tree, and where its Trio run is: only there its status may be read.

    It does not keep the tree, since a sink may outlive many of them.
    """

    tree: ref[_Tree]
    token: trio.lowlevel.TrioToken
    thread: int

    def look(self) -> tuple[Status, float, dict[str, int]] | None:
        """The status of the tree, the time of its clock, and the sizes of its mailboxes by their paths; None once the run is over.

        The caller may be in any thread.
        """
        if threading.get_ident() == self.thread:
            return self._look() if trio.lowlevel.in_trio_run() else None
        with suppress(trio.RunFinishedError):
            return trio.from_thread.run_sync(self._look, trio_token=self.token)
        return None

    def _look(self) -> tuple[Status, float, dict[str, int]] | None:
        tree = self.tree()
        if tree is None:
            return None
        status = tree.status()
        specs = ((node.path, tree._in_force(node.path)) for node in status.walk() if node.mailbox is not None)
        sizes = {path: its.mailbox.size for path, its in specs if its and isinstance(its.mailbox, Mailbox)}
        return status, trio.current_time(), sizes


class PrometheusSink:
    """A sink that counts events for Prometheus, and reads the state of its trees when it is scraped (R31).

    `docs/operating/metrics.md` lists the metrics. Their label `path` has only values that follow from the declared trees, so their number
    is bounded: all members of a pool are `app/pool/*`, and all nodes that are added to a supervisor at run time are `app/*`.

    A kind of node may have metrics of its own: if the class of a declared child's resource, or of its body, has an attribute
    `prometheus_metrics`, a static function, that is called once, with this sink, and returns the `MoreMetrics`. It registers
    them at `registry`, and gets the values of their labels `path` from `label`.

    Give it to `open_tree(…, sinks=[sink])`, so that it gets the first events too, and call `attach(tree)`; with `run_tree`, use
    `run_tree(tree, sinks=[sink], watch=sink.watch)`.

    Args:
        trees: the declarations of the trees whose events it gets; the names of their roots differ.
        registry: where the metrics are registered; None is a new registry, the attribute `registry`.
        nodes: if a tree declares more nodes than this, the children of a supervisor that are not supervisors themselves share
            the path `app/*`.
        tags: how many tags of failures have their own series. Further ones are exported as `other`, and
            `supervise_other_tags_total` counts them.

    Raises:
        TypeError: a tree is neither a `Supervisor` nor a `Pool`, or an argument has another type.
        ValueError: no tree is given, two have the same name, a number is out of range, or the registry has these metrics already:
            give all trees to one sink, or each sink its own registry.
    """

    def __init__(
        self,
        *trees: Supervisor | Pool,
        registry: CollectorRegistry | None = None,
        nodes: int = 100,
        tags: int = 50,
    ) -> None:
        check_number("nodes", nodes, least=1, kind=int)
        check_number("tags", tags, least=0, kind=int)
        self.registry = CollectorRegistry() if registry is None else registry
        self._roots = _names(trees)
        self._most_tags = tags
        self._tags: set[str] = set()
        self._attached: dict[str, _Attached] = {}
        self._intervals = Intervals()
        self._labels: dict[str, str] = {}
        self._own: set[str] = set()
        for tree in trees:
            self._declare(tree, nodes)
        self._make_metrics()
        self._more: dict[Callable[[PrometheusSink], MoreMetrics], MoreMetrics] = {}
        for tree in trees:
            for _, spec in _patterns(tree):
                for make in _more_metrics(spec):
                    self.include(make)

    def include(self, make: Callable[[PrometheusSink], MoreMetrics]) -> None:
        """Add the metrics of a kind of node that no tree declares, since such nodes come at run time only; before `attach`.

        Args:
            make: as a class has it in `prometheus_metrics`. One that is included already is not called again.
        """
        if make not in self._more:
            self._more[make] = make(self)

    def __call__(self, event: Event) -> None:
        """Count one event.

        Raises:
            ValueError: it comes from a tree that this sink was not made for; the tree reports that once, and goes on (R31).
        """
        path = self.label(event.path)
        match event:
            case Decided():
                directive = "none" if event.directive is None else event.directive.name
                self._failures.labels(path, self._tag(event.tag), directive).inc()
            case Starting(incarnation=incarnation) if incarnation > 1:
                self._restarts.labels(path).inc()
            case StartOverdue():
                self._overdue.labels(path, "start").inc()
            case Overdue():
                self._overdue.labels(path, "stop").inc()
            case StopError():
                self._stop_errors.labels(path).inc()
            case SinkFailed():
                self._sinks_failed.labels(path).inc()
            case _:
                pass
        for interval in self._intervals.take(event):
            if interval.outcome in ("ready", "resumed"):
                times = self._starts if interval.kind == "start" else self._recoveries
                times.labels(path).observe(interval.seconds)

    def attach(self, tree: _Tree) -> None:
        """Read the gauges from this running tree, in place of an earlier one with the same root; call it in its Trio run.

        If the tree does not yet call this sink with its events, it does so from now on.

        Raises:
            ValueError: this sink was not made for a tree with that root.
            RuntimeError: the caller is not in a Trio run.
        """
        root = tree.status().path
        self.label(root)  # it raises if this sink was not made for that root
        with suppress(ValueError):  # it gets the events already
            tree.subscribe(self)
        self._attached[root] = _Attached(ref(tree), trio.lowlevel.current_trio_token(), threading.get_ident())
        for more in self._more.values():
            more.attach(tree)

    async def watch(self, tree: _Tree) -> None:
        """Attach a tree; for the `watch` of `run_tree`."""
        self.attach(tree)

    def expose(self, accept: str = "") -> tuple[bytes, str]:
        """All metrics of the registry, for the answer to a scrape: the body, and its content type.

        It can be called from any thread; from another one than that of the tree it waits for the event loop.

        Args:
            accept: the header `Accept` of the request, which asks for the text format of Prometheus or for OpenMetrics.
        """
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type

    # --- what a registry asks for

    def describe(self) -> Iterator[Metric]:
        """The gauges without values, which a registry checks for duplicates."""
        yield from self._families().values()

    def collect(self) -> Iterator[Metric]:
        """The gauges, read from the trees now."""
        families = self._families()
        children: Counts[tuple[str, str]] = Counts()
        waiting: Counts[str] = Counts()
        oldest: dict[str, float] = {}
        for attached in list(self._attached.values()):
            seen = attached.look()
            if seen is None:
                continue
            status, now, sizes = seen
            for node in status.walk():
                path = self.label(node.path)
                if node.kind != "child":
                    children.update({(path, state): 0 for state in _STATES})
                    children.update((path, child.state) for child in node.children)
                if node.mailbox is not None:
                    waiting[path] += node.mailbox
                    age = 0.0 if node.waiting_since is None else now - node.waiting_since
                    oldest[path] = max(oldest.get(path, 0.0), age)
                if node.path in self._own:
                    self._add_own(families, node, path, sizes.get(node.path))
        for labels, number in children.items():
            families["children"].add_metric(labels, number)
        for path, number in waiting.items():
            families["waiting"].add_metric([path], number)
            families["oldest"].add_metric([path], oldest[path])
        yield from families.values()

    def _add_own(self, families: _Families, node: Status, path: str, size: int | None) -> None:
        """The values of one node: a sum over several would mean nothing, or it would fall when one of them leaves."""
        values: dict[str, int | None] = {"handled": node.handled, "size": size}
        if node.limit is not None:
            values |= {"used": node.restarts, "allowed": node.limit.restarts}
        for name, value in values.items():
            if value is not None:
                families[name].add_metric([path], value)

    def _families(self) -> _Families:
        def gauge(name: str, text: str, *more: str) -> GaugeMetricFamily:
            return GaugeMetricFamily(f"supervise_{name}", text, labels=["path", *more])

        return {
            "children": gauge("children", "Children of a supervisor by their state.", "state"),
            "used": gauge("limit_used", "Restarts that a limit still counts."),
            "allowed": gauge("limit_allowed", "Restarts that a limit allows within its window."),
            "waiting": gauge("mailbox_waiting", "Messages that wait in a mailbox."),
            "oldest": gauge(
                "mailbox_oldest_seconds", "For how long the first call or stream in a mailbox waits."
            ),
            "size": gauge("mailbox_size", "Messages for which a mailbox has room."),
            "handled": CounterMetricFamily(
                "supervise_mailbox_handled",
                "Messages taken out of a mailbox, and items put into its streams.",
                labels=["path"],
            ),
        }

    def _make_metrics(self) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"supervise_{name}", text, labels, registry=self.registry)

        def histogram(name: str, text: str) -> Histogram:
            return Histogram(
                f"supervise_{name}_seconds", text, ["path"], registry=self.registry, buckets=_BUCKETS
            )

        self.registry.register(self)
        self._failures = counter("failures", "Failures and their decisions.", "path", "tag", "directive")
        self._restarts = counter("restarts", "Incarnations that began after the first one.", "path")
        self._overdue = counter("overdue", "Reports of a start or a stop that takes long.", "path", "phase")
        self._stop_errors = counter("stop_errors", "Failures of a node that was being stopped.", "path")
        self._sinks_failed = counter("sinks_failed", "Sinks that raised and were dropped.", "path")
        self._other_tags = counter("other_tags", "Failures whose tag is exported as `other`.")
        self._starts = histogram("start", "From the start of a node until it is ready.")
        self._recoveries = histogram("recovery", "From the failure of a node until it is ready again.")
        # Prometheus has no increase of a counter that appears with its first failure, so all that can begin at 0 do.
        for path in dict.fromkeys(self._labels.values()):
            for counted in (self._restarts, self._stop_errors):
                counted.labels(path)
            for phase in ("start", "stop"):
                self._overdue.labels(path, phase)
        for root in self._roots:
            self._sinks_failed.labels(self._labels[root])

    # --- labels

    def _declare(self, tree: Supervisor | Pool, most: int) -> None:
        """Note the label of each declared node, and of the members of each pool."""
        nodes = list(_patterns(tree))
        folds = len(nodes) > most
        for path, spec in nodes:
            is_folded = folds and isinstance(spec, Child)
            self._labels[path] = printable(f"{path.rpartition('/')[0]}/*" if is_folded else path)
            if not is_folded:
                self._own.add(path)

    def label(self, path: str) -> str:
        """The value of the label `path` for a node.

        Raises:
            ValueError: this sink was not made for a tree with such a node.
        """
        known = self._labels.get(path)
        if known is not None:
            return known
        here, *names = path.split("/")
        if here not in self._roots:
            made_for = ", ".join(map(repr, self._roots))
            raise ValueError(f"this PrometheusSink was made for {made_for}, got a node of {brief(here)}")
        for name in names:
            below = f"{here}/{name}"
            here = below if below in self._labels else f"{here}/*"
            if here not in self._labels:  # added at run time
                return printable(here)
        return self._labels[here]

    def _tag(self, tag: str | None) -> str:
        text = "" if tag is None else printable(tag)
        if text and text not in self._tags:
            if len(self._tags) >= self._most_tags:
                self._other_tags.inc()
                return _OTHER
            self._tags.add(text)
        return text


def _more_metrics(spec: Spec) -> Iterator[Callable[[PrometheusSink], MoreMetrics]]:
    """What a child's class of resource or body offers. The class is asked, since an object may have any attribute."""
    for part in (spec.resource, spec.body) if isinstance(spec, Child) else ():
        make = getattr(type(part), "prometheus_metrics", None)
        if make is not None:
            yield make


def _names(trees: tuple[Supervisor | Pool, ...]) -> list[str]:
    """The names of the roots."""
    for tree in trees:
        if not is_a(tree, (Supervisor, Pool)):
            raise TypeError(f"a PrometheusSink is made for Supervisors and Pools, got {brief(tree)}")
    names = [tree.name for tree in trees]
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"a PrometheusSink is made for trees whose roots have different names, got {brief(names)}"
        )
    return names


def _patterns(tree: Supervisor | Pool) -> Iterator[tuple[str, Spec]]:
    """Each declared node with its path, parents first; the template of a pool's members has the name `*`."""
    waiting: list[tuple[str, Spec]] = [(tree.name, tree)]
    while waiting:
        path, spec = waiting.pop()
        yield path, spec
        if isinstance(spec, Pool):
            waiting.append((f"{path}/*", spec.template))
        elif isinstance(spec, Supervisor):
            waiting += [(f"{path}/{child.name}", child) for child in reversed(spec.children)]
