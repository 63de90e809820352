"""The command `supervise check`: what is wrong with a declared tree, found without starting it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from attrs import define, field, frozen

from .._core._brief import printable
from .._core._check import noting
from . import findings
from .bodies import mistakes
from .codes import CODES, TABLE, code_of
from .findings import Finding
from .load import NoTree, load, name_of_module
from .output import write, write_error
from .places import Comments, Declared, Place, shown

FORMATS = ("text", "json", "github")


def add(commands: Any, target: str) -> None:
    """Register the command on the subparsers of `argparse`; `target` is the help for its argument."""
    check = commands.add_parser(
        "check",
        help="validate a tree without starting it",
        description="Validate a tree without starting it. The exit status is 1 if it has an error, 2 if it cannot be loaded.",
    )
    check.add_argument("target", metavar="MODULE[:ATTR]|FILE[:ATTR]", nargs="?", help=target)
    check.add_argument("--strict", action="store_true", help="exit with status 1 also if there is a warning")
    check.add_argument(
        "--select",
        type=_codes,
        metavar="CODES",
        help="report only these warnings: codes or their beginnings, separated by commas",
    )
    check.add_argument(
        "--ignore", type=_codes, default=(), metavar="CODES", help="do not report these warnings"
    )
    check.add_argument(
        "--format", choices=FORMATS, default="text", help="text, json, or github: annotations of a workflow"
    )
    check.add_argument(
        "--explain",
        nargs="?",
        const="",
        metavar="CODE",
        help="explain a code with an example; without one, list all codes",
    )
    check.set_defaults(command=_check, usage=check.error)


def _codes(text: str) -> tuple[str, ...]:
    """The value of an option: codes, or beginnings of codes, such as `SUP2`."""
    asked = tuple(filter(None, (one.strip().upper() for one in text.split(","))))
    for one in asked:
        known = [code for code in TABLE if code.name.startswith(one)]
        if not known:
            raise argparse.ArgumentTypeError(f"unknown code {one!r}: --explain lists all")
        if all(code.severity == "error" for code in known):
            raise argparse.ArgumentTypeError(f"{one} is an error, and errors are always reported")
    return asked


def _check(arguments: argparse.Namespace) -> int:
    if arguments.explain is not None:
        return _explain(arguments.explain)
    target: str | None = arguments.target
    if target is None:
        raise arguments.usage("the following arguments are required: MODULE[:ATTR]|FILE[:ATTR]")
    lines, status = report(target, arguments.select, arguments.ignore)
    if arguments.strict and status == 0 and lines:
        status = 1
    _WRITERS[arguments.format](lines)
    if arguments.format == "text" and status == 0:
        write(f"{target}: ok\n")
    return status


def _explain(name: str) -> int:
    if not name:
        write(listed())
        return 0
    code = CODES.get(name.upper())
    if code is None:
        raise NoTree(f"unknown code {name!r}: --explain alone lists all")
    write(code.explanation)
    return 0


def listed() -> str:
    """The codes and their titles, one line each."""
    return "".join(f"{code.name}  {code.severity:7}  {code.title}\n" for code in TABLE)


def rows() -> Iterator[str]:
    """The codes as a table in Markdown, as docs/reference/checking.md has it."""
    yield "| code | kind | what is wrong |"
    yield "|---|---|---|"
    for code in TABLE:
        kind = f"{code.severity}, if selected" if code.optional else code.severity
        yield f"| {code.name} | {kind} | {code.title} |"


# --- what is found


@frozen
class Line:
    """A finding as it is reported."""

    code: str
    text: str
    path: str | None = None
    file: str | None = None
    line: int | None = None
    last: int | None = field(default=None, repr=False)

    @property
    def severity(self) -> str:
        """Whether it is an error or a warning."""
        return CODES[self.code].severity


def report(
    target: str, select: Sequence[str] | None = None, ignore: Sequence[str] = ()
) -> tuple[list[Line], int]:
    """The findings of a target that are to be reported, and the exit status without `--strict`.

    Args:
        target: as for `load`.
        select: the beginnings of the codes of the warnings to report; None: all but the optional ones.
        ignore: the beginnings of those not to report.
    """
    declared = Declared(name_of_module(target))
    try:
        with noting(declared.watch):
            tree = load(target, declared.problems)
            wrong = [_refused(problem, place) for problem, place in declared.problems]
            if tree is not None:
                wrong += [
                    _line(Finding(code_of(text).name, text, spec=spec), declared)
                    for spec, text in findings.errors(tree)
                ]
    except NoTree as refused:
        file, number = refused.place or (None, None)
        return [Line("SUP001", str(refused), None, file and shown(file), number, number)], 2
    if wrong or tree is None:
        return _in_order(wrong), 1
    asked = _Asked(select, ignore, Comments(), declared)
    warned = [_line(one, declared) for one in (*findings.warnings(tree), *mistakes(tree)) if asked.for_(one)]
    warned += [_line(one, declared) for one in asked.empty_comments() if asked.for_(one)]
    return _in_order(warned), 0


def _in_order(lines: Iterable[Line]) -> list[Line]:
    """Each once, by file and line."""
    return sorted(dict.fromkeys(lines), key=lambda one: (one.file or "", one.line or 0))


def _refused(problem: str, place: Place | None) -> Line:
    code = code_of(problem).name
    return (
        Line(code, problem)
        if place is None
        else Line(code, problem, None, place.shown, place.line, place.last)
    )


def _line(finding: Finding, declared: Declared) -> Line:
    place = finding.place or (None if finding.spec is None else declared.places.get(finding.spec))
    if place is None:
        return Line(finding.code, finding.text, finding.path)
    return Line(finding.code, finding.text, finding.path, place.shown, place.line, place.last)


@define
class _Asked:
    """Which warnings the options and the comments in the files leave."""

    select: Sequence[str] | None
    ignore: Sequence[str]
    comments: Comments
    declared: Declared

    def for_(self, finding: Finding) -> bool:
        """Whether this warning is to be reported."""
        chosen = (
            not CODES[finding.code].optional
            if self.select is None
            else finding.code.startswith(tuple(self.select))
        )
        if not chosen or finding.code.startswith(tuple(self.ignore) or "-"):
            return False
        places = [finding.place, None if finding.spec is None else self.declared.places.get(finding.spec)]
        return not any(place and self.comments.silence(finding.code, place) for place in places)

    def empty_comments(self) -> Iterator[Finding]:
        """A finding for each comment that has no code, or one of an error, or one that does not exist."""
        for file in dict.fromkeys(place.file for place in self.declared.places.values()):
            for place, codes in self.comments.all(file):
                for code in codes:
                    if code not in CODES or CODES[code].severity == "error":
                        what = f"names {code!r}, which is no warning" if code else "has no code"
                        yield Finding(
                            "SUP901", f"the comment {what}; write # supervise: ignore[SUP201]", place=place
                        )


# --- formats


def _as_text(lines: Iterable[Line]) -> None:
    for one in lines:
        where = "supervise" if one.file is None else f"{one.file}:{one.line}"
        write_error(printable(f"{where}: {one.severity}: {one.text} [{one.code}]"))


def _as_json(lines: Iterable[Line]) -> None:
    listed = [
        {
            "code": one.code,
            "severity": one.severity,
            "text": one.text,
            "path": one.path,
            "file": one.file,
            "line": one.line,
            "end_line": one.last,
        }
        for one in lines
    ]
    write(json.dumps(listed, indent=1) + "\n")


def _as_github(lines: Iterable[Line]) -> None:
    """Workflow commands, see "Workflow commands for GitHub Actions" in GitHub's documentation."""
    for one in lines:
        where = {"file": one.file, "line": one.line, "endLine": one.last, "title": one.code}
        given = ",".join(f"{name}={_escaped(value)}" for name, value in where.items() if value is not None)
        text = one.text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
        write(f"::{one.severity} {given}::{text}\n")


def _escaped(value: object) -> str:
    """A property of a workflow command: it ends at a comma or a colon."""
    escapes = {"%": "%25", "\r": "%0D", "\n": "%0A", ":": "%3A", ",": "%2C"}
    return "".join(escapes.get(char, char) for char in str(value))


_WRITERS = {"text": _as_text, "json": _as_json, "github": _as_github}
