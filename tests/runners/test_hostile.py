"""Values that raise, lie, never end or hold 100 MB, at every place where one enters a device worker (D5, D10)."""

import dataclasses
from collections import Counter, OrderedDict, defaultdict
from decimal import Decimal

import pytest
import trio
from hostiles import (
    CHUNKS,
    EXCEPTIONS,
    HUGE,
    INFOS,
    OURS,
    POISONS,
    DeclaresIt,
    Number,
    Rager,
    RaisesIt,
    Text,
    YieldsIt,
    _deep,
)
from sessions import every_host
from stage import (
    Caller,
    batch,
    serving,
    until,
    worker_leaves_nothing,  # noqa: F401 - The import makes this autouse fixture apply to the tests of this file.
)

from runners.brief import MAX_LINKS, MAX_TEXT, brief, causes, one_line, quoted, text_of, trace_of
from runners.diagnosis.classify import classify, sound
from runners.errors import (
    BadRequest,
    ContextPoisoned,
    DeviceError,
    InferenceError,
    LoadFailed,
    OutOfMemory,
    PoisonRequest,
    RunnerError,
    WorkerDown,
)
from runners.hosts.inline import InlineHost
from runners.hosts.turns import Position, judged, made_by
from runners.models.scripted import Scripted
from runners.types import ExecuteBatch, RunnerInfo, Sampling, TokenChunk, with_release
from runners.worker import rebuild, report_poison
from runners.worker.record import _settled
from supervise import Restart, Resume, StartFailed, events


def few(name):
    return batch(name, most=10)


async def both(scene, model=""):
    """A request of which something is wrong, beside one of which nothing is."""
    odd, other = Caller(batch("odd", most=10, model=model)), Caller(few("other"))
    async with trio.open_nursery() as nursery:
        for caller in (odd, other):
            await nursery.start(caller.run, scene.worker)
    assert other.error is None
    assert other.ids == tuple(range(6))
    return odd.error, odd.ids


async def each_alone(scene, names, delivered=(0, 1, 2)):
    """Each odd one ends in its own error, short, and nobody has noticed."""
    for name in names:
        error, ids = await both(scene, name)
        assert type(error) is RunnerError, (name, error)
        assert len(str(error)) <= MAX_TEXT, name
        assert ids == delivered, name
        assert scene.context.incarnation == 1, name
        assert not scene.of(events.Failed), name


@pytest.mark.slow
@every_host
@pytest.mark.trio
async def test_a_requests_error_may_be_anything(host):
    """D5: it is told as a RunnerError, whatever looking at it does; the streams beside it go on."""
    async with serving(RaisesIt("EXCEPTIONS"), host=host, patience=200) as scene:
        await each_alone(scene, EXCEPTIONS)


SOME = (
    "Exception.__class__",
    "Exception.__str__",
    "Exception.__eq__",
    "Exception.tag",
    "exit Exception.__str__",
    "a text of 100 MB",
    "50,000 causes",
    "50,000 groups in each other",
    "a hostile metaclass",
    "group exceptions",
)


@every_host
@pytest.mark.parametrize("at", ["execute", "closed"])
@pytest.mark.trio
async def test_so_may_that_of_a_stream_that_begins_or_closes(host, at):
    """D5: wherever a stream raises."""
    async with serving(RaisesIt("EXCEPTIONS", at=at), host=host) as scene:
        await each_alone(scene, SOME, () if at == "execute" else (0, 1, 2))


@every_host
@pytest.mark.trio
async def test_an_error_of_ours_may_misbehave(host):
    """D5: a subclass of one of our errors is what it is a subclass of, whatever it says of itself."""
    async with serving(RaisesIt("OURS"), host=host, limit=None) as scene:
        for name, (kind, _) in OURS.items():
            error, ids = await both(scene, name)
            assert issubclass(type(error), kind), (name, error)
            assert ids == (0, 1, 2)
        decided = {(type(event.exc), event.directive) for event in scene.of(events.Decided)}
        assert decided == {(OutOfMemory, Resume)}
        assert len(scene.of(events.Decided)) == sum(kind is OutOfMemory for kind, _ in OURS.values())


@every_host
@pytest.mark.parametrize("name", POISONS)
@pytest.mark.trio
async def test_a_poison_may_misbehave(host, name):
    """D3: it is a poison all the same, and nothing worse comes of it."""
    async with serving(RaisesIt("POISONS", name), host=host, above=None, limit=None) as scene:
        odd = Caller(batch("odd", most=10))
        await odd.run(scene.worker)
        assert issubclass(type(odd.error), PoisonRequest if scene.context.incarnation > 1 else WorkerDown)
        first = scene.of(events.Decided)[0]
        assert issubclass(type(first.exc), DeviceError)
        assert first.directive == Restart  # the root's, where a thread cannot clear it


@every_host
@pytest.mark.parametrize("at", ["load", "rebuild", "end"])
@pytest.mark.parametrize(
    "name",
    SOME,
)
@pytest.mark.trio
async def test_a_load_a_rebuild_and_a_close_may_raise_anything(host, at, name):
    """D2, D7: a load that fails is a LoadFailed, and so is a rebuild; a close is an error of the stop."""
    runner = RaisesIt("EXCEPTIONS", name, at)
    if at == "load":
        with pytest.raises(StartFailed) as failed:
            async with serving(runner, host=host):
                pass
        assert type(root(failed.value)) is LoadFailed
        return
    async with serving(runner, host=host) as scene:
        if at == "rebuild":
            with pytest.raises(LoadFailed):
                await rebuild(scene.worker)
            await scene.incarnation(2)
        else:
            await scene.worker.ready()
    assert len(scene.of(events.StopError)) == (at == "end")


def root(error):
    while not isinstance(error, InferenceError):
        error = error.__cause__
    return error


@every_host
@pytest.mark.trio
async def test_a_chunk_may_be_anything(host):
    """D5: what is no chunk, or not the next, is a RunnerError where the runner lives, with what was expected and what came."""
    async with serving(YieldsIt(), host=host) as scene:
        await each_alone(scene, CHUNKS)


@every_host
@pytest.mark.parametrize("name", INFOS)
@pytest.mark.trio
async def test_what_a_runner_declares_may_be_anything(host, name):
    """D2: what is no RunnerInfo, or not a valid one, is a load that failed."""
    with pytest.raises(StartFailed) as failed:
        async with serving(DeclaresIt(name), host=host):
            pass
    error = root(failed.value)
    assert type(error) is LoadFailed
    assert len(str(error)) <= MAX_TEXT


class SubBatch(ExecuteBatch):
    """Raises at whatever of it is looked at."""

    __getattribute__ = Rager.__getattribute__


def forged(field, value, of="batch"):
    """A request, one of whose fields has been replaced behind its back."""
    request = ExecuteBatch("forged", "x", sampling=Sampling(seed=1))
    object.__setattr__(request if of == "batch" else request.sampling, field, value)
    return request


REQUESTS = {
    "raises": Rager,
    "class": lambda: ExecuteBatch,
    "None": lambda: None,
    "text": lambda: Text("x"),
    "100 MB": lambda: "x" * HUGE,
    "deep": _deep,
    "a subclass": lambda: object.__new__(SubBatch),
    "a prompt of its own": lambda: forged("prompt", Text("x")),
    "an id that raises": lambda: forged("request_id", Rager()),
    "an id of its own": lambda: forged("request_id", Text("x")),
    "a model": lambda: forged("model", 3),
    "sampling": lambda: forged("sampling", Rager()),
    "on_loss": lambda: forged("on_loss", Text("fail")),
    "max_tokens": lambda: forged("max_tokens", Number(3), "sampling"),
    "negative": lambda: forged("max_tokens", -3, "sampling"),
    "seed": lambda: forged("seed", Rager(), "sampling"),
    "temperature": lambda: forged("temperature", Rager(), "sampling"),
    "stop": lambda: forged("stop", Rager(), "sampling"),
    "stops": lambda: forged("stop", (Rager(),), "sampling"),
    "no stop": lambda: forged("stop", None, "sampling"),
    "a number to stop at": lambda: forged("stop", (5,), "sampling"),
    "a text to stop at": lambda: forged("stop", "ab", "sampling"),
}


@every_host
@pytest.mark.trio
async def test_a_request_may_be_anything(host):
    """D5: what is no request is a BadRequest of whoever sent it; so with a call, a stream, and a message nobody waits for."""
    async with serving(YieldsIt(), host=host) as scene:
        for name, make in REQUESTS.items():
            with pytest.raises(BadRequest) as refused:
                await scene.worker.call(make())
            assert len(str(refused.value)) <= 2 * MAX_TEXT, name
            with pytest.raises(BadRequest):
                async with scene.worker.stream(make()) as chunks:
                    await anext(chunks)
            await scene.worker.send(make())
            other = Caller(few("other"))
            await other.run(scene.worker)
            assert other.error is None, name
            assert not scene.of(events.Failed), name


@pytest.mark.parametrize("value", [Decimal(1), 1])
def test_a_request_is_served_as_its_constructors_would_have_made_it(value):
    """D5: what was set behind their back is converted all the same, or a process could not be told of it."""
    served = _settled(forged("temperature", value, "sampling"), may_move=True).sampling
    assert (served.temperature, type(served.temperature)) == (1.0, float)
    assert type(_settled(forged("stop", ["ab"], "sampling"), may_move=True).sampling.stop) is tuple


CHANGES = {
    "request_id": "other",
    "prompt": 3,
    "payload": object(),
    "sampling": None,
    "model": None,
    "deadline": -5.0,
}


@every_host
@pytest.mark.parametrize("field", CHANGES)
@pytest.mark.trio
async def test_a_request_that_its_caller_changes_afterwards_is_served_as_it_was(host, field):
    """D5, D6: frozen or not, once it is admitted it is the worker's, in this session and in the next."""
    async with serving(Scripted(40, delay=0.005), host=host) as scene:
        changed, other = Caller(batch("changed")), Caller(batch("other"))
        async with trio.open_nursery() as nursery:
            for caller in (changed, other):
                await nursery.start(caller.run, scene.worker)
            await until(lambda: changed.chunks and other.chunks)
            sent, changed.request = changed.request, batch("changed")
            object.__setattr__(sent, field, CHANGES[field])
            await rebuild(scene.worker)
        for caller in (changed, other):
            assert caller.error is None
            assert len(caller.ids) == 40
        assert scene.context.incarnation == 1


VALUES = {
    "raises": Rager(),
    "its own": Number(3),
    "None": None,
    "text": "3",
    "true": True,
    "huge": 10**5000,
    "list": [],
    "half": 2.5,
}


@pytest.mark.parametrize("name", VALUES)
def test_a_field_is_taken_as_a_plain_value_or_refused(name):
    """D5: a number of a class of its own is that number; what is none is refused, in a line that is short and does not raise."""
    value = VALUES[name]
    for make, field in (
        (lambda: Sampling(max_tokens=value), "max_tokens"),
        (lambda: Sampling(seed=value), "seed"),
        (lambda: RunnerInfo(streams=value), "streams"),
    ):
        try:
            made = make()
        except (TypeError, ValueError) as error:
            assert len(str(error)) < 1000
            assert name != "its own"
        else:
            assert type(getattr(made, field)) in (int, type(None))
    for field in ("prompt", "model", "on_loss", "sampling", "request_id"):
        if name != "text" or field in ("on_loss", "sampling"):
            with pytest.raises((TypeError, ValueError)) as refused:
                ExecuteBatch(**{"request_id": "r", "prompt": "x", field: value})
            assert len(str(refused.value)) < 1000


def test_a_text_of_a_class_of_its_own_is_only_a_text():
    """D5: whatever it makes of `==` and `hash`, the worker's tables hold the text itself."""
    request = ExecuteBatch(Text("r"), Text("p"), model=Text("m"), sampling=Sampling(stop=(Text("s"),)))
    fields = (request.request_id, request.prompt, request.model, *request.sampling.stop)
    assert fields == ("r", "p", "m", "s")
    assert {type(field) for field in fields} == {str}


REASONS = {
    "its own": Text("x"),
    "100 MB": "x" * HUGE,
    "raises": Rager(),
    "lines": "\ud800\n\n",
    "deep": _deep(),
}


@every_host
@pytest.mark.parametrize("name", REASONS)
@pytest.mark.trio
async def test_a_reported_poison_may_say_anything(host, name):
    """D3, D2: it is a restart, and the next start is told of it in a line."""
    async with serving(YieldsIt(), host=host) as scene:
        await scene.worker.ready()
        report_poison(scene.worker, REASONS[name], 1)
        await scene.incarnation(2)
        (decided,) = scene.of(events.Decided)
        assert (type(decided.exc), decided.directive) == (ContextPoisoned, Restart)


@pytest.mark.parametrize("name", ["Exception.__class__", "exit Exception.__str__", "Exception.tag"])
@pytest.mark.trio
async def test_a_stream_whose_caller_was_cancelled_is_closed_by_a_task(name):
    """D10: a caller who is cancelled is told of inside Trio; what closing raises there would end the program."""
    async with serving(RaisesIt("EXCEPTIONS", name, "closed"), host=InlineHost()) as scene:
        odd = Caller(batch("odd", most=10))

        def leave(chunk):
            if chunk.index == 2:
                odd.scope.cancel()

        odd._on_chunk = leave
        await odd.run(scene.worker)
        other = Caller(few("other"))
        await other.run(scene.worker)
        assert other.error is None
        assert not scene.of(events.Failed)


@pytest.mark.parametrize("name", EXCEPTIONS)
def test_looking_at_an_exception_never_raises_and_is_short(name):
    """D5: its text, its name and its traceback."""
    error = EXCEPTIONS[name]()
    for text in (brief(error), text_of(error), quoted(error), trace_of(error), one_line(brief(error))):
        assert type(text) is str
        assert len(text) <= MAX_TEXT
    assert sum(1 for _ in causes(error)) <= MAX_LINKS
    assert len(brief(error)) <= 500


class Compared(int):
    """A key that counts how often it is compared with another."""

    times = 0

    def __lt__(self, other):
        Compared.times += 1
        return int.__lt__(self, other)

    __hash__ = int.__hash__


@pytest.mark.parametrize("made", [dict.fromkeys, set, frozenset])
def test_a_large_container_is_not_sorted_for_its_text(made):
    """D5: Sorting a million keys would block the loop for a second; a few are sorted, as by `reprlib`."""
    Compared.times = 0
    assert "..." in brief(made(map(Compared, range(10_000))))
    assert brief(made([2, 1])) == repr(made([1, 2]))
    assert 0 < Compared.times < 1_000


class Shown:
    """An item that counts how often it is printed."""

    times = 0

    def __repr__(self):
        Shown.times += 1
        return "item"


class Items(list):
    """A list of a class of its own."""


@pytest.mark.parametrize(
    "made",
    [Counter, OrderedDict.fromkeys, lambda items: defaultdict(int, dict.fromkeys(items)), Items],
    ids=["Counter", "OrderedDict", "defaultdict", "Items"],
)
def test_of_a_large_container_of_another_class_a_few_items_are_printed(made):
    """D5: Printing a million of them would block the loop for a second. Of a few the text is the container's own."""
    Shown.times = 0
    text = brief(made([Shown() for _ in range(10_000)]))
    assert text.startswith(f"{type(made([])).__name__}(")
    assert "item, " in text or "item: " in text
    assert Shown.times < 100
    assert brief(made([2, 1])) == repr(made([2, 1]))


def test_what_is_shown_of_an_exception_is_what_python_shows():
    """As far as it is short: name, text, arguments, where it was raised and from what."""
    for error in (
        ValueError("x"),
        ValueError("x", 3),
        KeyError("x"),
        OSError(2, "gone"),
        ExceptionGroup("g", [ValueError(1)]),
    ):
        assert brief(error) == repr(error)
        assert text_of(error) == str(error)
    assert quoted(ValueError("x")) == "ValueError: x"
    try:
        try:
            raise KeyError("first")
        except KeyError as first:
            raise ValueError("second") from first
    except ValueError as second:
        trace = trace_of(second)
    assert trace.index("KeyError: 'first'") < trace.index("ValueError: second")
    assert trace.count("test_hostile.py") == 2


def test_a_chunk_of_too_many_tokens_is_refused_where_the_runner_lives():
    """D10: the parent would take too long to read it."""
    position = Position("r", 0, 10**6)
    with pytest.raises(RunnerError, match="at most 65536 tokens, got 65537"):
        position.chunk(TokenChunk(request_id="r", index=0, token_ids=(1,) * 65_537))


def test_a_device_is_asked_once_about_a_group():
    """D4: each time may take as long as a device that hangs lets it."""
    asked = []
    group = ExceptionGroup("several", [RuntimeError(str(number)) for number in range(5)])
    classify(group, lambda: asked.append("asked"))
    assert asked == ["asked"]


def test_an_error_that_cannot_go_through_a_nursery_is_a_plain_one():
    """D5: of the nearest class of ours, with its text, raised from it; any other is itself."""
    odd, well = POISONS["ContextPoisoned.__class__"](), type("Mine", (ContextPoisoned,), {})("mine")
    assert type(sound(odd)) is ContextPoisoned
    assert sound(odd).__cause__ is odd
    assert sound(well) is well
    assert type(judged(odd, lambda error: error, clears=True)) is ContextPoisoned
    assert judged(well, lambda error: error, clears=True) is well


@pytest.mark.trio
async def test_a_dropped_sync_stream_is_closed_by_whoever_begins_or_reads_next():
    """D10: not by whoever drops it, who may be Trio itself."""
    closed = []

    class Runner:
        info = RunnerInfo(streams=1)
        rebuild = close = staticmethod(lambda *_: None)

        def execute(self, batch):
            return with_release(iter([]), lambda: closed.append(batch.request_id))

    class Spec:
        def build(self, start):
            return Runner()

    async with InlineHost().open(Spec()) as session:
        session.begin(few("a"))
        session.drop("a")
        assert closed == []
        session.begin(few("b"))
        assert closed == ["a"]


@dataclasses.dataclass(frozen=True)
class FrozenPoison(ContextPoisoned):
    """None of its attributes can be set, its notes neither."""


def noted_oddly():
    """Its notes are no list."""
    poison = ContextPoisoned("gone")
    poison.__notes__ = "gone"
    return poison


@pytest.mark.parametrize("make", [FrozenPoison, noted_oddly])
def test_a_poison_that_takes_no_note_is_not_hidden_by_a_close_that_fails(make):
    class Unclosable:
        def __iter__(self):
            return self

        def __next__(self):
            raise make()

        def close(self):
            raise ValueError("not closed")

    with pytest.raises(ContextPoisoned):
        made_by(Unclosable())
