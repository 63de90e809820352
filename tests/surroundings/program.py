"""`program.py HOST FOLDER RESULT RUN SETUP`: a device worker whose context is killed in mid-stream.

HOST is fork, standby or spawn; FOLDER is where `helped` can be imported from; RESULT is the file for what happened, as
JSON; RUN says how Trio is run; SETUP is code that is run before anything of ours is imported.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

TOKENS = 200


def main() -> None:
    host, folder, result, run, setup = sys.argv[1:]
    sys.path.append(folder)
    exec(setup, {"__name__": "setup"})

    import json

    said: dict[str, object]
    try:
        said = report(host, result, run)
    except Exception as error:
        said = {"refused": "; ".join(texts(error))}
    Path(result).write_text(json.dumps(said))


def texts(error: BaseException) -> list[str]:
    """The texts of the single errors in it."""
    if isinstance(error, BaseExceptionGroup):
        return [text for one in error.exceptions for text in texts(one)]
    return [f"{type(error).__name__}: {error}"]


def report(host: str, result: str, run: str) -> dict[str, object]:
    """What happened, and what is left of it."""
    from helped import Helped, flags

    from runners import device_worker
    from runners.hosts.process.host import ProcessHost
    from runners.models.scripted import Fault, Scripted

    hosts = {
        "fork": ProcessHost(next_chunk_timeout=5.0, linger=0.5),
        "standby": ProcessHost(next_chunk_timeout=5.0, standby=1, linger=0.5),
        "spawn": ProcessHost(start="spawn", next_chunk_timeout=5.0),
    }
    # So that no stream is over before its context is killed.
    slow = Fault("slow", at_token=15, incarnation=1, seconds=3)
    scripted = Scripted(TOKENS, delay=0.002, faults=(slow,))
    workers = [
        device_worker(name, Helped(scripted, flags()), host=hosts[host]) for name in ("llm", "bystander")
    ]
    before = descriptors()
    positions, incarnations, bystander = RUNS[run](stream, workers, result)
    return {
        "positions": positions,
        "incarnations": incarnations,
        "bystander": bystander,
        "descriptors": descriptors() - before,
        "children": len(children()),
    }


async def stream(workers: list, result: str) -> tuple[list[int], list[int], int]:
    """The positions that came, and in which incarnations; and the one in which another worker is at the end."""
    import signal

    import trio

    from runners import ExecuteBatch, Sampling
    from supervise import Supervisor, open_tree

    request = ExecuteBatch("r", "hello", sampling=Sampling(seed=1, max_tokens=TOKENS))
    positions: list[int] = []
    incarnations: list[int] = []
    with trio.fail_after(150):
        worker, bystander = workers
        async with open_tree(Supervisor("app", workers), sinks=[]) as tree:
            context = await tree[worker].ready()
            await trio.sleep(0.5)  # the standby comes up
            async with tree[worker].stream(request) as chunks:
                async for chunk in chunks:
                    positions.append(chunk.index)
                    if chunk.incarnation not in incarnations:
                        incarnations.append(chunk.incarnation)
                    if chunk.index == 10:
                        os.kill(context.pid, signal.SIGKILL)
                    if chunk.index == 20 and "freeze" in result:
                        await frozen(result)
            unhurt = (await tree[bystander].ready()).incarnation
    return positions, incarnations, unhurt


async def frozen(result: str) -> None:
    """Be stopped, with all that we have started, by the driver; this takes no time of ours."""
    import trio

    Path(f"{result}.ready").touch()  # noqa: ASYNC240 - two files are all that driver and program have in common
    while not Path(f"{result}.done").exists():  # noqa: ASYNC110, ASYNC240 - as above
        await trio.sleep(0.005)


def plain(function, *args):
    import trio

    return trio.run(function, *args)


def thread(function, *args):
    """In a thread that is not the main one."""
    import threading

    answers: list[object] = []

    def work() -> None:
        try:
            answers.append(plain(function, *args))
        except Exception as error:
            answers.append(error)

    one = threading.Thread(target=work)
    one.start()
    one.join()
    if isinstance(answers[0], Exception):
        raise answers[0]
    return answers[0]


def guest(function, *args):
    """In asyncio's loop."""
    import asyncio

    import trio

    async def main():
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        trio.lowlevel.start_guest_run(
            function,
            *args,
            run_sync_soon_threadsafe=loop.call_soon_threadsafe,
            done_callback=done.set_result,
        )
        return (await done).unwrap()

    return asyncio.run(main())


def closing(function, *args):
    """Without standard streams from the middle of the run on, so that their numbers are the next to be given away."""

    async def closed():
        os.closerange(0, 3)
        return await function(*args)

    return plain(closed)


RUNS = {"plain": plain, "thread": thread, "guest": guest, "closing": closing}


def children() -> list[int]:
    """Our own, zombies too; what is below a subreaper or process 1 is among them."""
    found: list[int] = []
    for task in os.listdir("/proc/self/task"):
        found += map(int, Path(f"/proc/self/task/{task}/children").read_text().split())
    return found


def descriptors() -> int:
    """Beside those of standard streams, and of the folder that is read for this."""
    return sum(
        int(name) > 2 and os.path.lexists(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")
    )


if __name__ == "__main__":
    main()
