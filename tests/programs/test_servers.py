"""Redis, PostgreSQL and nginx under a tree: a short form of `python -m tests.programs`."""

from __future__ import annotations

import pytest
import trio

from supervise import Child, StartFailed, Supervisor, open_tree
from supervise.programs import Command, notify, tcp

from .campaign import TARGETS, Campaign
from .servers import SERVERS, Nginx, Postgres, Redis, processes_in, refuses


@pytest.fixture
def server(request, tmp_path):
    """A server in a folder of its own; skipped if it is not installed."""
    kind = SERVERS[request.param]
    if why := kind.missing():
        pytest.skip(why)
    one = kind(tmp_path)
    one.patience = 60.0  # these are never stopped
    one.prepare()
    yield one
    assert not processes_in(tmp_path)
    assert refuses(one.port)


def each(*kinds):
    names = [name for name, kind in SERVERS.items() if kind in kinds]
    return pytest.mark.parametrize("server", names, indirect=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", SERVERS)
def test_a_server_is_ready_again_after_each_strike(tmp_path, kind):
    """Each of its processes, its guardians and the parent are killed and stopped; its data is intact, and nothing is left."""
    if why := SERVERS[kind].missing():
        pytest.skip(why)
    strikes = trio.run(Campaign(kind, SERVERS[kind](tmp_path), seed=1).run, 8)
    assert {strike.kind for strike in strikes} == {
        f"{target} {name}" for target in TARGETS for name in ("SIGKILL", "SIGSTOP")
    }


@each(Redis, Postgres, Nginx)
def test_a_server_starts_is_ready_and_stops(server):
    """By its own check of readiness; the next child of the tree starts when it works."""
    found = []

    async def look():
        found.append(await trio.to_thread.run_sync(server.works))

    async def main():
        spec = server.command()
        async with open_tree(
            Supervisor("app", [spec, Child("look", look, restart="temporary")]), sinks=[]
        ) as tree:
            running = await tree[spec].ready()
            assert running.port in (server.port, None)
            await tree["app/look"].ended()
        return True

    assert trio.run(main)
    assert found == [True]


@each(Redis, Postgres)
def test_a_server_may_say_itself_that_it_is_ready(server):
    """Redis and Debian's PostgreSQL speak to systemd's socket."""

    async def main():
        more = ["--supervised", "systemd"] if isinstance(server, Redis) else []
        spec = server.command(*more, ready=notify())
        async with open_tree(Supervisor("app", [spec]), sinks=[]) as tree:
            await tree[spec].ready()
            assert await trio.to_thread.run_sync(server.works)

    trio.run(main)


@each(Redis)
def test_a_server_that_goes_to_the_background_is_refused_with_its_switch(server):
    """The usual mistake, and what to write instead."""

    async def main():
        spec = server.command("--daemonize", "yes")
        with pytest.raises(StartFailed) as failed:
            async with open_tree(Supervisor("app", [spec]), sinks=[]):
                pass
        assert "redis-server needs --daemonize no" in str(failed.value.__cause__)

    trio.run(main)


@each(Redis)
def test_two_servers_at_one_port(server, tmp_path):
    """The second one would pass a plain check of the port: the first one answers it."""

    async def main():
        first = server.command()
        other = Command("other", ["sleep", "1000"], cwd=tmp_path, ready=tcp(server.port))
        async with open_tree(Supervisor("app", [first]), sinks=[]) as tree:
            with pytest.raises(StartFailed) as failed:
                await tree["app"].add(other)
            assert f"port {server.port} is served by another process, redis-server" in str(
                failed.value.__cause__
            )

    trio.run(main)
