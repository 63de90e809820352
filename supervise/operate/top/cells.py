"""Text by the cells that it takes on a terminal, measured as urwid measures it when it draws."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from urwid import calc_text_pos, calc_width

from ..._core._brief import printable

Span = tuple[str, str]
"""A style of `terminal.PALETTE`, and a text."""
Line = list[Span]


def cells(text: str) -> int:
    """The width of a text: a letter of an East Asian script takes two cells, a combining one none."""
    return len(text) if text.isascii() else calc_width(text, 0, len(text))


def placed(text: str, width: int, align: str = "<") -> str:
    """The text in exactly `width` cells: filled up on the left or right, or cut with an ellipsis."""
    left = width - cells(text)
    if left >= 0:
        return " " * left + text if align == ">" else text + " " * left
    if width <= 0:
        return ""
    at, taken = calc_text_pos(text, 0, len(text), width - 1)
    return f"{text[:at]}…{' ' * (width - 1 - taken)}"


def fitted(line: Line, width: int) -> Line:
    """The line, cut to `width` cells."""
    left, kept = width, Line()
    for style, text in line:
        taken = cells(text)
        if taken > left:
            return [*kept, (style, placed(text, left))] if left else kept
        kept.append((style, text))
        left -= taken
    return kept


def length(line: Sequence[Span]) -> int:
    """The width of a line."""
    return sum(cells(text) for _, text in line)


def wrapped(text: str, width: int) -> Iterator[str]:
    """The lines of a text, broken at spaces where they are wider than `width`; what could control a terminal is escaped."""
    for raw in text.expandtabs(4).splitlines():
        line = printable(raw)
        indent = line[: len(line) - len(line.lstrip())]
        while cells(line) > width:
            at = max(1, calc_text_pos(line, 0, len(line), width)[0])
            space = line.rfind(" ", len(indent) + 1, at + 1)
            at = space if space > 0 else at
            yield line[:at].rstrip()
            rest = line[at:].lstrip()
            line = indent + rest if 2 * cells(indent) < width else rest
        yield line
