"""Plain data, which requests and chunks may carry (D11): None, bool, int, float, str, bytes, and lists and dicts of these."""

from __future__ import annotations

from typing import Any, cast

from .brief import brief, exact, is_a

MAX_DEPTH = 64
"""Of lists and dicts in one another."""
MAX_ITEMS = 2**22
"""Of all lists and dicts together. A list that stands in many places counts in each: a few such lists in one another have more items than
any memory holds."""
MAX_LISTS = 2**16
"""Of lists and dicts: each of them is looked into by itself, which would hold up the event loop."""

_ALLOWED = "None, bool, int, float, str, bytes, and lists and dicts of these"
_SCALARS = frozenset((type(None), bool, float, bytes))
"""Every value of these classes can travel. A str may have half a character, and an int more than 64 bits."""
_LEAST, _MOST = -(2**63), 2**64 - 1


# Their methods are called by these: those of a subclass may do anything.
_LIST: Any = list
_TUPLE: Any = tuple
_DICT: Any = dict


class NotPlain(Exception):
    """A value is no plain data. `where` is filled in on the way out, innermost last."""

    def __init__(self, why: str, kind: type[Exception]) -> None:
        super().__init__(why)
        self.kind = kind
        self.where: list[str] = []


def plain_data(what: str, value: object) -> Any:
    """A copy of the value that can travel to another process: tuples become lists, and numbers and texts lose their classes.

    A value that cannot travel is refused before it goes anywhere, with the place of it, so that all hosts carry the same.

    Args:
        what: the name of the value in an error.
        value: whatever a caller or a runner gave.

    Raises:
        TypeError: something in it is no plain data, or a key of a dict is no str.
        ValueError: an integer has more than 64 bits, a text cannot be encoded, lists and dicts are nested more than 64 deep, or they have
            more than 4,194,304 items together, or are more than 65,536.
    """
    try:
        return _copy(value, 0, _Count(what))
    except NotPlain as problem:
        where = "".join(reversed(problem.where))
        raise problem.kind(f"{what}{where} {problem}") from None


class _Count:
    """Of the items so far."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._items = self._lists = 0

    def add(self, items: int) -> None:
        """Another list or dict has so many items."""
        self._items += items
        self._lists += 1
        if self._items > MAX_ITEMS or self._lists > MAX_LISTS:
            raise ValueError(
                f"{self._what} must have at most {MAX_LISTS} lists and dicts, with {MAX_ITEMS} items together, got more"
            )


def _copy(value: Any, depth: int, count: _Count) -> Any:
    if type(value) in _SCALARS:
        return value
    if is_a(value, list, tuple):
        return _copied_list(value, depth, count)
    return _copied_dict(value, depth, count) if is_a(value, dict) else _copied_scalar(value)


def _copied_list(value: Any, depth: int, count: _Count) -> list[Any]:
    _check_depth(depth)
    kind = _LIST if is_a(value, list) else _TUPLE
    count.add(kind.__len__(value))
    made: list[Any] = list(kind.__iter__(value))
    if _travels_as_it_is(made):
        return made
    for index, item in enumerate(made):
        try:
            made[index] = _copy(item, depth + 1, count)
        except NotPlain as problem:
            problem.where.append(f"[{index}]")
            raise
    return made


def _travels_as_it_is(items: list[Any]) -> bool:
    """Whether every item is a plain scalar. A long list of token ids, of numbers or of ASCII texts takes no step for each."""
    kinds = set(map(type, items))
    if kinds == {int}:
        return bool(min(items) >= _LEAST and max(items) <= _MOST)
    return all(map(str.isascii, items)) if kinds == {str} else kinds <= _SCALARS


def are_integers(data: Any) -> bool:
    """Whether it is a list of integers, at least one, such as token ids. Found out without a step for each."""
    return is_a(data, list) and set(map(type, data)) == {int}


def _copied_dict(value: Any, depth: int, count: _Count) -> dict[str, Any]:
    _check_depth(depth)
    count.add(_DICT.__len__(value))
    made: dict[str, Any] = {}
    for key, item in _DICT.items(value):
        if not is_a(key, str):
            raise NotPlain(f"must have keys that are str, got {brief(key)}", TypeError)
        name = exact(key)
        if not is_encodable(name):
            raise NotPlain(f"must have keys that UTF-8 can encode, got {brief(name)}", ValueError)
        try:
            made[name] = _copy(item, depth + 1, count)
        except NotPlain as problem:
            problem.where.append(f"[{brief(name)}]")
            raise
    return made


def _check_depth(depth: int) -> None:
    if depth > MAX_DEPTH:
        raise NotPlain(f"is nested more than {MAX_DEPTH} deep", ValueError)


def is_encodable(text: str) -> bool:
    """Whether UTF-8 can encode a text: it cannot if the text has half a character, a surrogate without its other one."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _copied_scalar(value: Any) -> int | float | str | bytes:
    if is_a(value, int):
        number = int.__int__(value)
        if not _LEAST <= number <= _MOST:
            raise NotPlain(f"must be an integer of at most 64 bits, got {brief(number)}", ValueError)
        return number
    if is_a(value, float):
        return float.__float__(value)
    if is_a(value, str):
        text = exact(value)
        if not is_encodable(text):
            raise NotPlain(f"must be a text that UTF-8 can encode, got {brief(text)}", ValueError)
        return text
    if is_a(value, bytes, bytearray):
        return bytes(memoryview(value))
    raise NotPlain(f"must be plain data ({_ALLOWED}), got {brief(value)}", TypeError)


def size_of(data: Any) -> int:
    """About how many bytes plain data takes: one for each character or byte, and eight for each other item."""
    kind = cast("type[object]", type(data))
    if kind is list:
        return 8 + sum(map(size_of, data))
    if kind is dict:
        return 8 + sum(map(size_of, data)) + sum(map(size_of, data.values()))
    return len(data) if kind in (str, bytes) else 8
