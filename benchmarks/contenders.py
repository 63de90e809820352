"""The contenders: this project, the floors, Erlang if `erl` is installed, and the peers that are installed.

python -m benchmarks.contenders triotp mode     makes their virtual environments, `benchmarks/.venv-NAME`
python -m benchmarks.contenders                 all of them
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).parent
FLOORS = ("trio_floor", "trio_task", "trio_order", "trio_deque")
PEERS = {
    "triotp": "triotp==0.2.1",
    "otpylib": "otpylib==0.5.18",
    "mode": "mode-streaming==0.7.1",
    "pykka": "pykka==4.5.0",
}
"""Each peer and the exact version that its adapter is written for."""

IMPORTS = {"ours": "from supervise import *", "trio_floor": "import trio"}
"""The statements whose import time is measured."""


def present() -> list[str]:
    """The contenders that can take part on this machine, the floors first."""
    erlang = ["erlang"] if shutil.which("erl") else []
    return [*FLOORS, "ours", *erlang, *(peer for peer in PEERS if _python_of(peer).exists())]


def python(contender: str) -> str:
    """The Python under which its adapter runs."""
    return str(_python_of(contender)) if contender in PEERS else sys.executable


def _python_of(peer: str) -> Path:
    return HERE / f".venv-{peer}" / "bin" / "python"


def version(contender: str) -> str:
    """The versions that are measured."""
    if contender == "erlang":
        code = 'io:format("OTP ~s", [erlang:system_info(otp_release)]), halt().'
        return output("erl", "-noshell", "-eval", code)
    package = PEERS[contender].partition("==")[0] if contender in PEERS else "trio"
    code = f"import importlib.metadata, sys; print(*sys.version_info[:3], importlib.metadata.version({package!r}))"
    *numbers, of_package = output(python(contender), "-c", code).split()
    return f"{package} {of_package}, Python {'.'.join(numbers)}"


def output(*command: str, env: Mapping[str, str] | None = None) -> str:
    """The standard output of a command."""
    done = subprocess.run(
        command, check=True, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    return done.stdout.strip()


def make(peers: Sequence[str]) -> None:
    """Make a virtual environment for each peer."""
    for peer in peers:
        venv.create(HERE / f".venv-{peer}", with_pip=True)
        subprocess.run([python(peer), "-m", "pip", "install", "-q", PEERS[peer]], check=True)
        print(f"{peer}: {version(peer)}")


if __name__ == "__main__":
    make(sys.argv[1:] or list(PEERS))
