"""What `docs/operating/views.md` shows is what is printed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "operating" / "views.md").read_text()
SHOP, LOOK, _ = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
SHOWN = re.findall(r"^```console\n\$ supervise (tree .*?)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize(("command", "output"), SHOWN, ids=["text", "mermaid"])
def test_the_page_shows_what_the_command_prints(tmp_path, command, output):
    """The first block of the page, drawn by the command."""
    (tmp_path / "shop.py").write_text(SHOP)
    result = subprocess.run(
        [sys.executable, "-m", "supervise.cli", *command.split()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert result.stdout == output


def test_the_page_shows_what_its_program_prints():
    """The second block prints the picture beneath it; what is due is due a little later or earlier."""
    result = subprocess.run(
        [sys.executable, "-c", SHOP + LOOK], capture_output=True, text=True, timeout=60, check=True
    )
    shown, _ = re.findall(r"^```text\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    assert re.sub(r"in 2\d\.\d s", "in 29.9 s", result.stdout).rstrip("\n") == shown.rstrip("\n")
