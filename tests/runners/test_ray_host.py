"""A runner on a node of a Ray cluster. A real cluster on this machine, real processes, real time."""

import importlib
import os
import signal
import subprocess
import sys
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
from contexts import PATIENCE, environment_of, stat, title, until
from far_nvml import FarNvml
from farlings import Holds, HoldsAhead, Leaves, Reports
from sessions import BATCH, ids, until_failure, whole

from benchmarks import namespaces
from benchmarks.cluster import NODE, clustered, missing, processes_of
from benchmarks.loopback import ROOT
from runners.errors import ContextDied, ContextHung, ContextUnreachable, LoadFailed, NoPlace, Unrecoverable
from runners.hosts import CheckingHost, Session
from runners.hosts.process import wire
from runners.hosts.remote.actor import Actor
from runners.hosts.remote.ray import RayHost
from runners.models.scripted import Fault, Scripted, expected
from runners.models.torch_lm import TorchLM
from runners.types import ExecuteBatch, RunnerStart, Sampling
from runners.worker import device_worker
from supervise import open_tree

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
    # Ray warns of its own settings, and leaves files to the garbage collector.
    pytest.mark.filterwarnings("ignore"),
]

STREAMS, TOKENS = 32, 60
LEASE = 3.0
OURS = ("runners:guard", "runners:context", "runners:standby", "runners:boot")
ACTOR = "ray::Launcher"
RUNNERS = (str(ROOT), str(ROOT / "tests/runners"))


@pytest.fixture(scope="module")
def cluster():
    with clustered() as cluster:
        yield cluster


@pytest.fixture
def pair(cluster):
    """Two nodes with a place each, and afterwards the proof that no process of a context is left on any node."""
    while len(cluster.nodes) < 2:
        cluster.add()
    yield cluster
    trio.run(until, lambda: not far(*OURS))


def far(*titles):
    """The pids of the processes of all nodes that have one of these titles."""
    found = set()
    for node in ("cut-off", "spare", *(f"node-{number}" for number in range(1, 20))):
        found |= {pid for pid in processes_of(node) if title(pid).startswith(titles)}
    return found


def node_of(pid):
    """The node of a process."""
    return environment_of(pid)[NODE]


def host(cluster, **settings):
    """A host with short times, that can import the runners of the tests."""
    times = {"lease": LEASE, "load_timeout": 60, "first_chunk_timeout": 60, "next_chunk_timeout": 60}
    return cluster.host(**{"path": RUNNERS, "start_timeout": 30, **times, **settings})


@asynccontextmanager
async def opened(cluster, runner, *, incarnation=1, **settings):
    with trio.fail_after(60):
        async with host(cluster, **settings).open(runner, incarnation=incarnation) as session:
            yield session


def killed(*titles):
    """SIGKILL for each process of the nodes with such a title; returns their pids."""
    found = far(*titles)
    for pid in found:
        os.kill(pid, signal.SIGKILL)
    return found


# --- a session like any other


@pytest.mark.trio
async def test_a_stream_of_a_node_arrives_whole_and_stamped(pair):
    """D6, D16: It is a session like any other, and no call of Ray has run on the thread of the loop."""
    calls, ours, terminates = [], host(pair), signal.getsignal(signal.SIGTERM)

    def note(frame, event, argument):
        if event == "call" and "/ray/" in frame.f_code.co_filename:
            calls.append(frame.f_code.co_qualname)
        elif event == "c_call" and (getattr(argument, "__module__", "") or "").startswith("ray."):
            calls.append(argument)

    sys.setprofile(note)
    try:
        async with ours.open(Scripted(5), incarnation=7) as session:
            assert isinstance(session, Session)
            items = await whole(session)
            assert title(session.pid) == "runners:context"
    finally:
        sys.setprofile(None)
    assert ids(items) == expected(BATCH, 5)
    assert {item.incarnation for item in items} == {7}
    assert calls == []
    assert isinstance(ours, CheckingHost)
    # Ray would take it, if it were started in the main thread.
    assert signal.getsignal(signal.SIGTERM) is terminates


@pytest.mark.trio
async def test_a_death_on_a_node_is_reported_with_its_cause(pair):
    """D10, D16: The guardian reports the end of the process itself, and the place is free at once."""
    async with opened(pair, Scripted(10_000, delay=0.01)) as session:
        session.begin(BATCH)
        os.kill(session.pid, signal.SIGKILL)
        _, error = await until_failure(session, ContextDied)
        assert str(error).startswith(f"the context process {session.pid} on ")
        assert str(error).endswith(" was killed by SIGKILL")
        assert error.tag == "device.poisoned.died"


@pytest.mark.trio
async def test_an_actor_that_is_killed_ends_its_context_which_is_reported(pair):
    """D16: The guardian notices the end of the actor: Ray gives its place to others."""
    async with opened(pair, Scripted(10_000, delay=0.01)) as session:
        session.begin(BATCH)
        assert killed(ACTOR)
        _, error = await until_failure(session, ContextDied)
        assert error.tag == "device.poisoned.died"


@pytest.mark.trio
async def test_a_step_that_hangs_on_a_node_is_killed(pair):
    """D9, D16: The deadlines are those of `ProcessHost`."""
    async with opened(pair, Scripted(10_000), next_chunk_timeout=0.5, first_chunk_timeout=0.5) as session:
        session.begin(BATCH)
        os.kill(session.pid, signal.SIGSTOP)
        await until_failure(session, ContextHung)


@pytest.mark.trio
async def test_output_of_a_node_is_logged_here_and_what_it_starts_ends_with_it(pair, tmp_path, caplog):
    """D10, D16: Output comes over the connection, and nothing of it goes through Ray."""
    caplog.set_level("INFO", "runners.context")
    async with opened(pair, Leaves(str(tmp_path))) as session:
        await whole(session)
        await until(lambda: "to standard error" in caplog.text)
        left = int((tmp_path / "left").read_text())
        assert stat(left)[0] == "S"
    await until(lambda: not Path(f"/proc/{left}").exists())


@pytest.mark.trio
async def test_nvml_of_a_node_is_asked_about_the_device_of_a_poisoned_context(pair, tmp_path):
    """D4, D16: By the guardian there, in the environment that Ray has given to the actor."""
    nvml = FarNvml(tmp_path, 1)
    with pytest.raises(Unrecoverable, match="cuda:0 cannot be used again: it needs a reset of the device"):
        async with opened(
            pair, Scripted(faults=(Fault("poison"),)), device="cuda:0", path=(nvml.path, *RUNNERS)
        ) as session:
            session.begin(BATCH)
            raise (await until_failure(session, Unrecoverable))[1]
    assert len(nvml.asked) == 1


@pytest.mark.trio
async def test_a_context_on_a_node_is_forked_and_has_the_environment_of_its_actor(pair, tmp_path):
    """D15, D16: Such as the devices that Ray has given to it. Both contexts are forked from what has imported the runner there."""
    there = {next(iter(pair.nodes)): 1}
    settings = {"resources": there, "start": "forkserver"}
    async with opened(pair, Reports(str(tmp_path), 10_000), **settings) as first:
        servers = far("runners:server")
        async with opened(pair, Reports(str(tmp_path), 10_000), incarnation=2, **settings) as session:
            assert far("runners:server") == servers
            for each in (first, session):
                assert {stat(stat(each.pid)[1])[1]} == servers
            boots = [environment_of(pid) for pid in far("runners:boot")]
            assert len(boots) == 2
            given = await trio.Path(tmp_path / f"{session.pid}").read_text()
            assert given in {repr(sorted(environment.items())) for environment in boots}
        await until(lambda: len(far(ACTOR)) == 1)
        first.begin(BATCH)
        assert killed(ACTOR)
        _, error = await until_failure(first, ContextDied)
        assert error.tag == "device.poisoned.died"
    await until(lambda: not far(*OURS, "runners:server"))


# --- places


@pytest.mark.trio
async def test_a_standby_is_on_another_node_and_serves_at_once(pair, tmp_path):
    """D15, D16: The loss of a node does not take the standby along, and nothing waits for the lease of the lost context."""
    times = {"standby": 1, "lease": 60}
    async with opened(pair, Holds(str(tmp_path)), **times) as session:
        await until(lambda: far("runners:standby"))
        (standby,) = far("runners:standby")
        assert node_of(standby) != node_of(session.pid)
        session.begin(BATCH)
        os.kill(stat(session.pid)[1], signal.SIGKILL)  # its guardian
        await until_failure(session, ContextUnreachable)
        before = trio.current_time()
    async with opened(pair, Holds(str(tmp_path)), incarnation=2, **times) as session:
        assert trio.current_time() - before < 30
        assert session.pid == standby
        assert ids(await whole(session)) == expected(BATCH)


@pytest.mark.trio
async def test_a_place_that_ray_cannot_give_is_named_with_what_was_asked_for(pair):
    """D16: One clear error, after the time of the start."""
    with pytest.raises(NoPlace, match="no place for a context with CPU: 2, nowhere: 3 within 1 s") as raised:
        async with opened(pair, Scripted(1), num_cpus=2, resources={"nowhere": 3}, start_timeout=1):
            pass
    assert raised.value.tag == "device.load.no_place"


@pytest.mark.trio
async def test_a_node_is_used_again_only_when_the_lease_of_a_lost_context_is_over(pair, tmp_path, caplog):
    """D2, D16: Its guardian is dead and reports nothing, and Ray giving the place again does not prove its end."""
    there = {next(iter(pair.nodes)): 1}
    times = {"resources": there, "lease": 10}
    async with opened(pair, Holds(str(tmp_path), 10_000, 0.01), **times) as session:
        session.begin(BATCH)
        await session.receive()
        assert killed("runners:guard")
        _, error = await until_failure(session, ContextUnreachable)
        assert error.tag == "device.poisoned.unreachable"
        before = trio.current_time()
    assert trio.current_time() - before < 5  # another node could be used at once
    async with opened(pair, Holds(str(tmp_path)), incarnation=2, **times) as session:
        assert trio.current_time() - before > 10
        assert ids(await whole(session)) == expected(BATCH)
    assert "its device is not used before" in caplog.text


@pytest.mark.trio
async def test_a_start_in_a_cluster_that_is_cancelled_leaves_nothing(pair, tmp_path):
    """D10, D16: Wherever it is cancelled; the place is free for the next one."""
    for seconds in (0.0, 0.01, 0.1, 0.5, 1.0):
        with trio.move_on_after(seconds):
            async with host(pair, linger=0).open(Leaves(str(tmp_path), "hang")):
                pass
    await until(lambda: not far(*OURS))
    async with opened(pair, Scripted(5)) as session:
        assert ids(await whole(session)) == expected(BATCH, 5)


@pytest.mark.trio
async def test_another_version_on_a_node_is_refused_with_both_numbers(pair, tmp_path):
    """D16: The far side is not tried with a protocol that it does not know."""
    old = tmp_path / "trio_supervise-0.0.1.dist-info"
    old.mkdir()
    (old / "METADATA").write_text("Metadata-Version: 2.1\nName: trio-supervise\nVersion: 0.0.1\n")
    says = f"it has trio-supervise 0.0.1 with protocol {wire.PROTOCOL}, and here it is"
    with pytest.raises(LoadFailed, match=says):
        async with opened(pair, Scripted(1), path=(str(tmp_path), *RUNNERS)):
            pass


@pytest.mark.trio
async def test_an_address_that_is_not_ours_is_refused(pair):
    """D16: Nothing can listen there."""
    with pytest.raises(LoadFailed, match=r"cannot listen at its address 192\.0\.2\.77"):
        async with opened(pair, Scripted(1), address="192.0.2.77"):
            pass


@pytest.mark.trio
async def test_an_actor_that_cannot_reach_this_program_says_why(pair, monkeypatch):
    """D16: As behind a firewall. Its exception comes by way of Ray."""
    serve = Actor.serve

    async def wrong(self, address, *arguments):
        await serve(self, (address[0], 1), *arguments)

    monkeypatch.setattr(Actor, "serve", wrong)
    with pytest.raises(LoadFailed, match=r"has not connected to .*: ConnectionRefusedError"):
        async with opened(pair, Scripted(1)):
            pass


@pytest.mark.trio
async def test_another_cluster_than_that_of_the_program_is_refused(pair):
    """D16: Ray has one connection for a program."""
    async with opened(pair, Scripted(1)):
        pass
    with pytest.raises(LoadFailed, match=r"connected to the Ray cluster at .*, not to 127\.0\.0\.1:1"):
        async with RayHost("127.0.0.1:1").open(Scripted(1)):
            pass


def test_a_program_that_connects_keeps_how_it_ends(cluster):
    """D16: Ray would end it without the head, or hang in its own hook for exceptions, and would take SIGTERM."""
    program = """
import os, signal, sys, threading
from runners.hosts.remote.actor import connect
thread = threading.Thread(target=connect, args=sys.argv[1:])
thread.start()
thread.join()
assert sys.modules["ray"].is_initialized()
assert sys.excepthook is sys.__excepthook__
assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
assert int(os.environ["RAY_gcs_rpc_server_reconnect_timeout_s"]) > 10**9
"""
    subprocess.run([sys.executable, "-c", program, cluster.address], check=True)


def test_ray_has_the_exceptions_by_which_its_reports_are_judged():
    """D16: They are known by their names, so that no module imports Ray for them."""
    exceptions = importlib.import_module("ray.exceptions")
    for name in (
        "ActorDiedError",
        "ActorUnavailableError",
        "ActorUnschedulableError",
        "OwnerDiedError",
        "RaySystemError",
        "ReferenceCountingAssertionError",
    ):
        assert getattr(exceptions, name).__module__.partition(".")[0] == "ray"
    assert isinstance(exceptions.RayActorError.preempted, property)


# --- 32 streams of a real model


def request(number):
    return ExecuteBatch(
        f"{number}", "The ", sampling=Sampling(seed=number, max_tokens=TOKENS, temperature=0.8)
    )


@pytest.fixture(scope="module")
def undisturbed():
    """The tokens of each stream, where nothing is lost."""
    runner = TorchLM(streams=STREAMS).build(RunnerStart(incarnation=1))
    return [[t for chunk in runner.execute(request(n)) for t in chunk.token_ids] for n in range(STREAMS)]


async def streamed(worker, strike):
    """The tokens of each stream, and the incarnations that made them; `strike` runs when all streams have begun."""
    tokens = [[] for _ in range(STREAMS)]
    incarnations = set()

    async def ask(tree, number):
        async with tree[worker].stream(request(number)) as chunks:
            async for chunk in chunks:
                assert chunk.index == len(tokens[number])
                tokens[number] += chunk.token_ids
                incarnations.add(chunk.incarnation)

    with trio.fail_after(200):
        async with open_tree(worker, sinks=[]) as tree:
            await until(lambda: far("runners:standby"))
            async with trio.open_nursery() as nursery:
                for number in range(STREAMS):
                    nursery.start_soon(ask, tree, number)
                while min(map(len, tokens)) < 5:  # noqa: ASYNC110 - the streams set no event
                    await trio.sleep(0.005)
                await strike()
    return tokens, incarnations


def strikes(cluster):
    def active():
        (pid,) = far("runners:context")
        return pid, node_of(pid)

    async def engine():
        os.kill(active()[0], signal.SIGKILL)

    async def actor():
        _, node = active()
        for pid in far(ACTOR):
            if node_of(pid) == node:
                os.kill(pid, signal.SIGKILL)

    async def raylet():
        pid, node = active()
        os.kill(cluster.raylet(node), signal.SIGKILL)
        await until(lambda: not Path(f"/proc/{pid}").exists())  # Ray says that its actor is dead
        cluster.remove(node)

    async def stopped_raylet():
        pid, node = active()
        os.kill(cluster.raylet(node), signal.SIGSTOP)
        await until(lambda: not Path(f"/proc/{pid}").exists())
        cluster.remove(node)

    async def node():  # all of it at once, as at the end of a machine
        _, name = active()
        for pid in processes_of(name):
            os.kill(pid, signal.SIGKILL)
        cluster.remove(name)

    return {strike.__name__: strike for strike in (engine, actor, raylet, stopped_raylet, node)}


@pytest.mark.parametrize("victim", ["engine", "actor", "raylet", "stopped_raylet", "node"])
@pytest.mark.trio
async def test_streams_of_a_node_equal_their_undisturbed_text(pair, undisturbed, tmp_path, victim):
    """D6, D16: Whatever is killed or stopped on the way, no token is lost or doubled, and no two contexts hold one device."""
    worker = device_worker("llm", HoldsAhead(str(tmp_path)), host=host(pair, standby=1, linger=0))
    tokens, incarnations = await streamed(worker, strikes(pair)[victim])
    assert tokens == undisturbed
    assert incarnations <= {1, 2}
    assert incarnations == {1, 2} or "raylet" in victim  # they may be done before Ray notices
    assert not (tmp_path / "two at once").exists()


@pytest.mark.skipif(namespaces.missing() is not None, reason=str(namespaces.missing()))
@pytest.mark.trio
async def test_a_link_that_is_cut_costs_no_token_and_no_lease(cluster, undisturbed, tmp_path):
    """D6, D9, D16: A deadline of the session finds the silence, streams go on elsewhere, and the far side ends itself."""

    async def strike():
        (pid,) = far("runners:context")
        assert node_of(pid) == "cut-off"
        machine.cut()
        await until(lambda: not Path(f"/proc/{pid}").exists())
        machine.heal()

    async def add_spare(running):
        await until(lambda: far("runners:context"))
        running.enter_context(cluster.joined("spare"))

    there = host(cluster, resources={"joined": 1}, standby=1, next_chunk_timeout=1, first_chunk_timeout=20)
    worker = device_worker("llm", HoldsAhead(str(tmp_path)), host=there)
    with ExitStack() as running:
        (machine,) = running.enter_context(namespaces.network())
        running.enter_context(cluster.joined("cut-off", inside=machine.inside, address=machine.address))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(add_spare, running)
            tokens, incarnations = await streamed(worker, strike)
    assert tokens == undisturbed
    assert incarnations == {1, 2}
    assert not (tmp_path / "two at once").exists()


PARENT = """
import sys, trio
from farlings import Holds
from runners.hosts.remote.ray import RayHost

async def main():
    host = RayHost(sys.argv[1], num_cpus=0, resources={"place": 1}, path=sys.argv[3:], lease=3, standby=1)
    async with host.open(Holds(sys.argv[2], 10_000, 0.01)):
        await trio.sleep_forever()

trio.run(main)
"""


@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.trio
async def test_a_killed_parent_leaves_nothing_on_any_node(pair, tmp_path, silent):
    """D10, D16: The end of the connection ends the far side; if the parent is only stopped, the lease does."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(RUNNERS)}
    command = [sys.executable, "-c", PARENT, pair.address, str(tmp_path), *RUNNERS]
    async with trio.open_nursery() as nursery:
        parent = await nursery.start(partial(trio.run_process, command, env=env, check=False))
        await until(lambda: far("runners:context") and far("runners:standby"), 2 * PATIENCE)
        if silent:
            parent.send_signal(signal.SIGSTOP)
            await until(lambda: not far(*OURS))
        parent.kill()
        await until(lambda: not far(*OURS))
    await until(lambda: not far(ACTOR))
