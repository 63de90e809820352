"""The rows of the table: the work, the reference and the target of each."""

from __future__ import annotations

from typing import Any, Literal

from attrs import field, frozen

OURS = "ours"


@frozen(eq=False)
class Work:
    """One function of the adapters with its arguments; several rows may read its result.

    Args:
        function: see `benchmarks.adapters`; `benchmarks.measure` itself does `imports`.
        arguments: those of the function.
        quick: other arguments for `--quick`.
        slow: it takes seconds, and is repeated five times at most.
    """

    function: str
    arguments: dict[str, int] = field(factory=dict[str, int])
    quick: dict[str, int] = field(factory=dict[str, int])
    slow: bool = False

    def with_size(self, *, quick: bool) -> dict[str, int]:
        """The arguments, with those of `--quick` if it is `quick`."""
        return {**self.arguments, **self.quick} if quick else self.arguments

    @property
    def name(self) -> str:
        """The key of its results."""
        return " ".join([self.function, *(f"{key}={value}" for key, value in self.arguments.items())])


@frozen(kw_only=True)
class Row:
    """One line of the table.

    Args:
        name: its name for `--only`.
        text: the measurement in words; the part before a semicolon is the title.
        work: the work that is measured.
        key: the key of its number in the result.
        per: the argument by which that number is divided, if any.
        unit: `s`, `/s`, `kB`, `%` or nothing.
        reference: the contender it is compared with; None: the number itself has the target.
        target: the most that our number divided by the reference's should be; the least if more is better.
    """

    name: str
    text: str
    work: Work
    key: str
    target: float | None
    reference: str | None = None
    per: str | None = None
    unit: Literal["s", "/s", "kB", "%", ""] = "s"

    @property
    def title(self) -> str:
        """The measurement in short."""
        return self.text.partition(";")[0]

    @property
    def more_is_better(self) -> bool:
        """Whether it is a rate."""
        return self.unit == "/s"

    def value(self, result: dict[str, Any]) -> float | None:
        """This row's number in the result of its work."""
        number: float | None = result.get(self.key)
        return number if number is None or self.per is None else number / result["arguments"][self.per]

    def met(self, ratio: float) -> bool | None:
        """Whether a ratio meets the target; None if there is none."""
        if self.target is None:
            return None
        return ratio >= self.target if self.more_is_better else ratio <= self.target


START = Work("start_stop", {"n": 10_000}, {"n": 1000})
START_MANY = Work("start_stop", {"n": 100_000}, {"n": 10_000}, slow=True)
START_TUNED = Work("start_tuned", {"few": 10_000, "many": 100_000}, {"few": 1000, "many": 10_000}, slow=True)
STORM = Work("storm", {"n": 10_000}, {"n": 2000})
STORM_SHORT = Work("storm", {"n": 500})
LATENCY = Work("latency", {"siblings": 1000, "n": 200}, {"n": 50})
CALL = Work("call", {"n": 20_000, "callers": 1}, {"n": 4000})
CALLS = Work("call", {"n": 20_000, "callers": 100}, {"n": 4000})
DEEP = Work("deep", {"depth": 100})
RESUME = Work("resume", {"n": 200_000}, {"n": 50_000})
IMPORT = Work("imports")


def _started(name: str, work: Work, n: str) -> list[Row]:
    return [
        Row(
            name=f"start {name}",
            text=f"start a child, one of {n}; each ready before the next",
            work=work,
            key="start_s",
            per="n",
            reference="trio_task",
            target=1.6,
        ),
        Row(
            name=f"stop {name}",
            text=f"stop a child, one of {n}; in order",
            work=work,
            key="stop_s",
            per="n",
            reference="trio_task",
            target=0.6,
        ),
    ]


def _tuned(what: str) -> Row:
    return Row(
        name=f"{what} tuned",
        text=f"{what} a child, with the collector set: one of 100,000, by one of 10,000; as recommended below",
        work=START_TUNED,
        key=f"{what}_growth",
        unit="",
        target=1.5,
    )


def _resumed(name: str, child: str, key: str) -> list[Row]:
    return [
        Row(
            name=f"frames{name}",
            text=f"frames of ours above the body of {child}",
            work=RESUME,
            key=f"frames{key}",
            unit="",
            target=3,
        ),
        Row(
            name=f"resume{name}",
            text=f"extra cost of a checkpoint in {child}, against a bare task",
            work=RESUME,
            key=f"overhead{key}",
            unit="%",
            target=3,
        ),
    ]


ROWS = [
    *_started("10k", START, "10,000"),
    *_started("100k", START_MANY, "100,000"),
    _tuned("start"),
    _tuned("stop"),
    Row(
        name="declare",
        text="declare a child; `Child(…)`, once for all its trees",
        work=START,
        key="declare_s",
        per="n",
        reference=None,
        target=None,
    ),
    Row(
        name="memory",
        text="memory of an idle child; its declaration included",
        work=START,
        key="kb_per_child",
        unit="kB",
        reference="trio_task",
        target=1.3,
    ),
    Row(
        name="storm",
        text="restart storm, 10,000 restarts of one leaf; ours has a sink attached",
        work=STORM,
        key="per_s",
        unit="/s",
        reference="trio_task",
        target=2.4,
    ),
    Row(
        name="storm 500",
        text="the same, 500 restarts; Erlang at its best",
        work=STORM_SHORT,
        key="per_s",
        unit="/s",
        reference="erlang",
        target=1.0,
    ),
    Row(
        name="crash p50",
        text="crash → running again among 1,000 siblings, median",
        work=LATENCY,
        key="p50_s",
        reference="trio_task",
        target=0.2,
    ),
    Row(
        name="crash p99",
        text="crash → running again among 1,000 siblings, 99th percentile",
        work=LATENCY,
        key="p99_s",
        reference="trio_task",
        target=0.5,
    ),
    Row(
        name="group",
        text="one_for_all restart of 1,000, in order both ways; the floor's is unordered",
        work=Work("group", {"n": 1000}),
        key="s",
        reference="trio_floor",
        target=1.8,
    ),
    Row(
        name="call 1",
        text="call, 1 caller; the floor has memory channels",
        work=CALL,
        key="per_s",
        unit="/s",
        reference="trio_floor",
        target=1.1,
    ),
    Row(
        name="call 100",
        text="call, 100 callers; the floor has memory channels",
        work=CALLS,
        key="per_s",
        unit="/s",
        reference="trio_floor",
        target=2.0,
    ),
    Row(
        name="send",
        text="one-way messages, taken one by one; the floor has memory channels",
        work=Work("send", {"n": 50_000}, {"n": 10_000}),
        key="per_s",
        unit="/s",
        reference="trio_floor",
        target=4.0,
    ),
    Row(
        name="send many",
        text="one-way messages, taken up to 64 at a time; the floor has memory channels",
        work=Work("send_many", {"n": 50_000}, {"n": 10_000}),
        key="per_s",
        unit="/s",
        reference="trio_floor",
        target=4.0,
    ),
    Row(
        name="deep",
        text="failure through 100 nested supervisors to the root's end; ours escalates",
        work=DEEP,
        key="s",
        reference="trio_floor",
        target=0.7,
    ),
    Row(
        name="deep limit",
        text="the same where each allows no restart; as in OTP, each ends before the one above is informed",
        work=Work("deep_limit", {"depth": 100}),
        key="s",
        reference="trio_floor",
        target=0.7,
    ),
    Row(
        name="import",
        text="import of everything; `from supervise import *` and `import trio`",
        work=IMPORT,
        key="seconds",
        reference="trio_floor",
        target=1.15,
    ),
    Row(
        name="dependencies",
        text="packages that this project requires",
        work=IMPORT,
        key="requires",
        unit="",
        target=2,
    ),
    *_resumed("", "a child", ""),
    *_resumed(" with a resource", "a child with a resource", "_owning"),
]
