"""Who imports whom, read from the source: the floors that hold, and what docs/project/architecture.md shows of the code.

`python -m tests.layers` writes its pictures, and its table of acts, anew.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from supervise._core import act

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "project" / "architecture.md"
Graph = dict[str, set[str]]

FLOORS = (
    "runners.demo",
    "runners.serve",
    "runners.http",
    "runners",
    "runners.models",
    "runners.worker",
    "runners.hosts",
    "runners.diagnosis",
    "runners.nursery runners.options runners.protect runners.types",
    "runners.checks runners.errors",
    "runners.plain",
    "runners.brief",
    "supervise.testing",
    "supervise.__main__",
    "supervise.cli",
    "supervise.operate",
    "supervise.views",
    "supervise.programs",
    "supervise",
    "supervise._trio",
    "supervise.sinks",
    "supervise._core supervise.events supervise.errors",
)
"""From the top to the ground. A room imports itself and what is on floors below its own, and its neighbours only on the ground."""


NEVERS = (
    ("runners.hosts.process.child", "runners.hosts.process.parent"),
    ("runners.hosts.process.parent", "runners.hosts.process.child"),
    ("runners.hosts.remote", "runners.hosts.process.child"),
    ("runners.hosts.process", "runners.hosts.remote"),
    ("runners.hosts.remote.guardian", "runners"),
    ("runners.hosts.remote.children", "runners"),
    ("runners.hosts.remote.launcher", "runners"),
    ("runners.hosts.remote.seeking", "runners"),
    ("runners.models", "runners.worker"),
    ("runners.worker", "runners.hosts.process"),
    ("runners.worker", "runners.hosts.remote"),
    ("runners.diagnosis", "runners.hosts"),
)
"""Each first one never imports the second one: what a context process runs knows nothing of its parent, and so on."""


TOGETHER = {
    ("runners.hosts.remote.guardian", "runners.hosts.remote.children"),
    ("runners.hosts.remote.guardian", "runners.hosts.remote.seeking"),
}
"""Imports that are allowed although `NEVERS` forbids them, because the texts of both modules are sent as one program."""


def modules() -> dict[str, Path]:
    """The files of both packages, by their dotted names."""
    files = (file for package in ("supervise", "runners") for file in sorted((ROOT / package).rglob("*.py")))
    return {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
        for file in files
    }


def imports() -> Graph:
    """Of each module those that it imports, wherever it does, also for its types alone."""
    known = modules()
    return {
        name: {each for each in _imported(name, file, known) if each != name} for name, file in known.items()
    }


def _imported(name: str, file: Path, known: Iterable[str]) -> Iterator[str]:
    package = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield from [full] if full in known else [base] if base in known else []


def circles(graph: Graph) -> list[str]:
    """The modules that import themselves over others, if any do."""
    left = {name: set(others) for name, others in graph.items()}
    while free := [name for name, others in left.items() if not others & left.keys()]:
        for name in free:
            del left[name]
    return sorted(left)


def room(name: str) -> str:
    """The folder of a module, or the module itself where it stands alone; a package's own file is its face."""
    return ".".join(name.split(".")[:2])


def floor_of(name: str) -> int:
    """The number of a room's floor, from the top."""
    return next(number for number, rooms in enumerate(FLOORS) if room(name) in rooms.split())


def against_the_floors(graph: Graph) -> list[str]:
    """The imports that go up, or to a neighbour that is not on the ground."""
    ground = len(FLOORS) - 1
    return [
        f"{name} imports {other}"
        for name, others in graph.items()
        for other in others
        if room(name) != room(other)
        and not (floor_of(name) < floor_of(other) or floor_of(name) == floor_of(other) == ground)
    ]


def forbidden(graph: Graph) -> list[str]:
    """The imports that `NEVERS` forbids."""
    return [
        f"{name} imports {other}"
        for name, others in graph.items()
        for other in others
        for above, below in NEVERS
        if _within(name, above) and _within(other, below) and (name, other) not in TOGETHER
    ]


def _within(name: str, package: str) -> bool:
    return f"{name}.".startswith(f"{package}.")


def picture(graph: Graph) -> str:
    """As Mermaid draws it, from the top down, without the arrows that follow from others."""
    reachable: Graph = {}

    def below(name: str) -> set[str]:
        if name not in reachable:
            reachable[name] = set()
            reachable[name] = graph[name].union(*(below(other) for other in graph[name]))
        return reachable[name]

    lines = ["```mermaid", "flowchart TD"]
    lines += [f"    {_id(name)}[{name.rpartition('.')[2] or name}]" for name in graph]
    for name, others in graph.items():
        implied = set[str]().union(*(below(other) for other in others))
        lines += [f"    {_id(name)} --> {_id(other)}" for other in sorted(others - implied)]
    return "\n".join([*lines, "```"])


def _id(name: str) -> str:
    return name.replace(".", "_")


def pictures() -> dict[str, str]:
    """What the page shows of the code, by the names of its places."""
    graph = imports()
    found = {}
    for package in ("supervise._core", "supervise._trio"):
        inside = {name for name in graph if name.startswith(f"{package}.")}
        found[package] = picture({name: graph[name] & inside for name in sorted(inside)})
    for package in ("supervise", "runners"):
        rooms: Graph = {}
        for name, others in graph.items():
            if name.split(".")[0] == package:
                its = rooms.setdefault(_shown(name), set())
                its |= {_shown(other) for other in others if other.split(".")[0] == package} - {_shown(name)}
        found[package] = picture(dict(sorted(rooms.items())))
    return {**found, "acts": _table(act.__doc__ or "")}


def _table(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if line.startswith("|"))


def _shown(name: str) -> str:
    """The ground floor of `supervise` is drawn as one: its modules know one another, though not in a circle."""
    return "supervise._core" if room(name) in FLOORS[-1].split() else room(name)


def drawn(page: str) -> str:
    """The page with its pictures as the code is now."""
    for name, text in pictures().items():
        place = re.compile(rf"(<!-- picture: {re.escape(name)} -->\n).*?(\n<!-- end -->)", re.DOTALL)
        if len(place.findall(page)) != 1:
            raise ValueError(f"docs/project/architecture.md must have one place for the picture {name!r}")
        page = place.sub(lambda match, text=text: match[1] + text + match[2], page)
    return page


if __name__ == "__main__":
    PAGE.write_text(drawn(PAGE.read_text()))
