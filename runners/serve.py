"""A tree that serves models over HTTP, as OpenAI's API has it: device workers, and the front that listens. Needs the extra `http`.

    python -m runners.serve                            the model that comes along, on http://127.0.0.1:8000
    python -m runners.serve FOLDER                     the model in a folder
    supervise run runners.serve                        the first one, with the lines of the tree

The front starts when all workers are ready, and is ready when it listens. It stops before they do.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import trio
from attrs import field, frozen
from trio.lowlevel import enable_ki_protection

from supervise import Child, Supervisor, current_child, run_tree, stop_requested
from supervise.operate import operate
from supervise.sinks.lines import LineSink

from .brief import brief
from .hosts.process.host import ProcessHost
from .models.torch_lm import TorchLM
from .options import MAX_BODY, MAX_TOKENS, TIMEOUT, check_options
from .types import RunnerSpec
from .worker import device_worker

__all__ = ["serve"]

TOKEN = "RUNNERS_TOKEN"  # noqa: S105 - the name of an environment variable, and no secret
"""Where the command finds its token: an argument could be read by every user of the machine."""

STALLED_SECONDS = 30
"""After so many seconds in which a client takes nothing that was sent to it, its connection is closed."""


def serve(
    workers: Mapping[str, Supervisor],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    max_body: int = MAX_BODY,
    timeout: float | None = TIMEOUT,
    max_tokens: int = MAX_TOKENS,
    drain: float = 30.0,
    name: str = "serve",
) -> Supervisor:
    """A supervisor with device workers and the front `http`, which serves them as `openai_app` does.

    The value of the front's `ready()` is the list of its URLs.

    When it is stopped, the front closes its port and its idle connections; requests that have begun get `drain` seconds. Then
    the workers stop.

    Args:
        workers: the device worker for the name of each model.
        host: the address to listen on. Without a token it must be one that only this machine can reach.
        port: of TCP; 0 takes one that is free.
        token: what each request must have as its bearer token.
        max_body: as `openai_app` has it, and so are the next two.
        timeout: seconds that a request may take.
        max_tokens: of a chat completion whose request names no limit.
        drain: seconds, 0 or more.
        name: of the supervisor.

    Raises:
        ValueError: `host` can be reached from other machines and `token` is None, or an argument is out of range.
        TypeError: an argument is of another type.
    """
    if not workers or not all(
        type(model) is str and isinstance(spec, Supervisor) for model, spec in workers.items()
    ):
        raise TypeError(f"workers must map at least one name to a device worker, got {brief(workers)}")
    options = {"token": token, "max_body": max_body, "timeout": timeout, "max_tokens": max_tokens}
    check_options(**options)
    if not _can_be_looked_up(host):
        raise ValueError(f"host must be an address, or a name that has one, got {brief(host)}")
    if token is None and not _is_loopback(host):
        raise ValueError(
            f"host must be a loopback address such as 127.0.0.1 unless there is a token, got {brief(host)}: "
            "everybody who reaches it could use the models"
        )
    if type(port) is not int or not 0 <= port <= 65535:  # noqa: PLR2004 - the range of TCP
        raise ValueError(f"port must be 0 to 65535, got {brief(port)}")
    names = {model: spec.name for model, spec in workers.items()}
    front = Child("http", _Front(names, host, port, options), drain=drain, start_timeout=60)
    return Supervisor(name, [*dict.fromkeys(workers.values()), front])


def _can_be_looked_up(host: object) -> bool:
    if type(host) is not str or "\0" in host:
        return False
    try:
        host.encode("idna")
    except UnicodeError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address. A name is none, but for `localhost`: what it means may change."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@frozen
class _Front:
    """The body of the front. It has the name of the worker of each model: with their specs, it would be restarted for each change in them."""

    workers: dict[str, str]
    host: str
    port: int
    options: dict[str, Any] = field(repr=False)

    @enable_ki_protection
    async def __call__(self, *, task_status: trio.TaskStatus[list[str]]) -> None:
        try:
            import hypercorn.config  # noqa: PLC0415 - a tree can be declared without the extra

            from supervise.operate.connections import Connections, share_of_files  # noqa: PLC0415 - It imports Hypercorn, and a tree can be declared without the extra.

            from .http import openai_app  # noqa: PLC0415 - likewise
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(f"{error}; install trio-supervise[http]", name=error.name) from error

        child = current_child()
        above = child.path.rpartition("/")[0]
        workers = {model: child.tree[f"{above}/{name}"] for model, name in self.workers.items()}
        app = openai_app(workers, stopping=stop_requested, **self.options)
        config = hypercorn.config.Config()
        connections = Connections(app, config, most=share_of_files(3 / 4))
        with await _listener(self.host, self.port) as listener:
            url = _url(listener)
            await config.log.info("Running on %s (CTRL + C to quit)", url)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(connections.run, listener)
                task_status.started([url])
                await stop_requested()
                connections.end()


def _url(listener: socket.socket) -> str:
    host, port, *_ = listener.getsockname()
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


async def _listener(host: str, port: int) -> socket.socket:
    """A socket that listens. A name is looked up in a thread, since a server of names may take long to answer.

    Raises:
        OSError: the address cannot be taken; the message names it.
    """
    try:
        try:
            found = _looked_up(host, port, socket.AI_NUMERICHOST)
        except socket.gaierror:
            found = await trio.to_thread.run_sync(
                _looked_up, host, port, abandon_on_cancel=True, limiter=trio.CapacityLimiter(1)
            )
        listener = socket.create_server(found[1][:2], family=found[0])
    except OSError as error:
        raise OSError(
            error.errno, f"cannot listen on {host} port {port}: {error.strerror or error}"
        ) from error
    listener.setblocking(False)
    # Its connections inherit this. Hypercorn shields what it sends from being cancelled: without a limit one client that
    # does not read could keep the front from ending.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STALLED_SECONDS * 1000)
    return listener


def _looked_up(host: str, port: int, flags: int = 0) -> tuple[int, tuple[Any, ...]]:
    """The family of an address, and the address itself."""
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)[0]
    return family, address


# --- the command


def worker(
    name: str, runner: RunnerSpec, *, devices: Sequence[str] | None = None, queue: int = 1024
) -> Supervisor:
    """The device worker of the command for one model: with a context for each device, by default for all that are there."""
    hosts = [ProcessHost(device, standby=1) for device in devices or all_devices()]
    return device_worker(name, runner, hosts=hosts, queue=queue)


def all_devices() -> list[str]:
    """The CUDA devices of this machine, as torch names them; the CPU if it has none. Torch is not asked: it would open them."""
    count = sum(1 for _ in Path("/dev").glob("nvidia[0-9]*"))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        count = min(count, sum(1 for each in visible.split(",") if each.strip() not in ("", "-1")))
    return [f"cuda:{number}" for number in range(count)] or ["cpu"]


def runner_of(folder: str | None) -> RunnerSpec:
    """The runner of the model in a folder; None is the model that comes along.

    Raises:
        ValueError: the folder does not exist, or has no model in it.
        ModuleNotFoundError: what such a model needs is not installed.
    """
    if folder is None:
        return TorchLM()
    if not Path(folder).is_dir():
        raise ValueError(f"the model must be an existing folder, got {Path(folder).absolute()}")
    if not (Path(folder) / "config.json").is_file():
        raise ValueError(
            f"the model must be a folder with a config.json, as Transformers saves it, got {folder}"
        )
    made: RunnerSpec = import_module("runners.models.transformers").TransformersLM(folder)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    arguments = _parser().parse_args(argv)
    folder: str | None = arguments.folder
    name = arguments.name or ("torch-lm" if folder is None else Path(folder).resolve().name)
    try:
        llm = worker("llm", runner_of(folder), devices=arguments.device, queue=arguments.queue)
        made = serve(
            {name: llm},
            host=arguments.host,
            port=arguments.port,
            token=os.environ.get(TOKEN),
            drain=arguments.drain,
        )
        if arguments.operate is not None:
            made = Supervisor(made.name, [operate(port=arguments.operate), *made.children])
    except (ValueError, OSError, ModuleNotFoundError) as error:
        # Standard error may be closed, or take nothing; the status says it all the same.
        with suppress(AttributeError, OSError):
            sys.stderr.write(f"runners.serve: {error}\n")
        return 2
    run_tree(made, sinks=[LineSink(times=True, lifecycle=True)])
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m runners.serve",
        description="Serve a model over HTTP, as OpenAI's API has it.",
        epilog=f"The bearer token that requests must have is taken from the environment variable {TOKEN}.",
    )
    parser.add_argument("folder", nargs="?", help="of the model (default: the one that comes along)")
    parser.add_argument("--name", help="of the model in requests (default: that of the folder)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: %(default)s)")
    parser.add_argument(
        "--device",
        action="append",
        help="as torch names it; given again for each further context (default: all CUDA devices, or the CPU)",
    )
    parser.add_argument(
        "--queue", type=int, default=1024, help="requests that may wait (default: %(default)s)"
    )
    parser.add_argument(
        "--drain",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="that begun requests get when the server stops (default: %(default)s)",
    )
    parser.add_argument(
        "--operate",
        type=int,
        metavar="PORT",
        help="show the tree on this port of 127.0.0.1: metrics for Prometheus, health, a page (needs the extras operate and "
        "prometheus)",
    )
    return parser


tree = serve({"torch-lm": worker("torch-lm", TorchLM())})

if __name__ == "__main__":
    sys.exit(main())
