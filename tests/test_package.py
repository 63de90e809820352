"""What is installed."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (file,) = folder.iterdir()
    return zipfile.ZipFile(file)


def test_the_wheel_holds_the_two_packages_and_nothing_else(wheel):
    """The distribution lists `supervise` and `runners`, and its own metadata."""
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"supervise", "runners"}


def test_the_wheel_holds_what_is_no_code(wheel):
    """The marker files for type checkers, the demo's prompts, the model's weights, the dashboard and the page are in the wheel."""
    names = set(wheel.namelist())
    assert {"supervise/py.typed", "runners/py.typed", "runners/demo.txt"} <= names
    assert "runners/models/torch_lm/weights.safetensors" in names
    assert "supervise/sinks/grafana.json" in names
    assert {f"supervise/operate/page/{name}" for name in ("index.html", "page.js", "page.css")} <= names


def test_the_library_depends_on_trio_and_attrs_alone():
    """Everything else is an extra."""
    assert sorted(name.split(">")[0] for name in PROJECT["dependencies"]) == ["attrs", "trio"]
    assert PROJECT["name"] == "trio-supervise"
    assert PROJECT["scripts"] == {"supervise": "supervise.cli:main"}


def test_the_readme_states_the_facts_of_the_package_and_links_to_no_other_host():
    """Its line of facts is that of `pyproject.toml`."""
    versions = [each.rpartition(" ")[2] for each in PROJECT["classifiers"] if ":: Python :: 3." in each]
    readme = (ROOT / "README.md").read_text()
    facts = f"Python {versions[0]} to {versions[-1]} · Linux · typed · [{PROJECT['license']}](LICENSE) · needs Trio and attrs"
    assert f"\n{facts}, everything else is an extra\n" in readme
    assert "](http" not in readme


def test_torch_is_pinned_in_the_constraints_alone():
    """`pyproject.toml` requires a range of torch; one exact version stands in `constraints.txt`."""
    assert (ROOT / "constraints.txt").read_text().count("torch==2.13.0") == 1
    assert "torch==" not in (ROOT / "pyproject.toml").read_text()
