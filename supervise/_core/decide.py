"""From an exception to a tag, and from the tag to a directive (R1–R5)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, cast

from attrs import Factory, evolve, field, frozen

from ._brief import brief
from ._call import wrong_function
from ._check import is_a, plain, refuse
from ._code import Code
from ._value import Value
from .directive import Directive, Escalate, Restart, Resume, Stop

FRAMEWORK_TAGS = frozenset({"returned", "limit"})
_REMEMBERED = 64  # answers of one decider: tags may be anything
_DOTTED = re.compile(r"\w+(\.\w+)*")


def _is_exception_class(value: object) -> bool:
    return is_a(value, type) and issubclass(cast("type", value), BaseException)


def as_group(exc: BaseException) -> BaseExceptionGroup[BaseException] | None:
    """`exc` if it is a group."""
    return cast("BaseExceptionGroup[BaseException]", exc) if isinstance(exc, BaseExceptionGroup) else None


def _matching(exc: BaseException) -> tuple[type[Any], ...]:
    """The classes that match an exception, the nearest first; a group is matched by group classes alone (R3)."""
    kind: type[Any] = BaseException if as_group(exc) is None else BaseExceptionGroup
    return tuple(cls for cls in type(exc).__mro__ if issubclass(cls, kind))


def _check_tag(what: str, tag: object) -> bool:
    if type(tag) is str and _DOTTED.fullmatch(tag):
        return True
    return refuse(ValueError(f"{what} must be a dotted tag such as 'device.oom', got {brief(tag)}"))


def _classes(value: object) -> tuple[type[BaseException], ...]:
    classes: tuple[Any, ...] = cast("tuple[object, ...]", value) if type(value) is tuple else (value,)
    if not classes or not all(map(_is_exception_class, classes)):
        refuse(
            TypeError(
                f"a rule's first argument must be an exception class or a tuple of them, got {brief(value)}"
            )
        )
        return ()
    return classes


def _pattern(value: str | re.Pattern[str] | None) -> re.Pattern[str] | None:
    value = plain(value)
    if value is None or (type(value) is re.Pattern and type(value.pattern) is str):
        return cast("re.Pattern[str] | None", value)
    try:
        if type(value) is str:
            return re.compile(value)
        refusal: Exception = TypeError(f"a rule's match must be a regular expression, got {brief(value)}")
    except (re.error, RecursionError, OverflowError) as wrong:
        refusal = ValueError(f"a rule's match must be a regular expression, got {brief(value)}")
        refusal.__cause__ = wrong
    refuse(refusal)
    return None


@frozen(repr=False, eq=False)
class Rule(Code, Value):
    """Gives a tag to an exception. No rule matches on text without a class (R1).

    Args:
        exceptions: an exception class or a tuple of them.
        tag: a dotted string, such as `"db.gone"`.
        match: a regular expression that must be found in `str(exception)`.
        when: a predicate; one that raises means Escalate (R5).
    """

    exceptions: tuple[type[BaseException], ...] = field(converter=_classes)
    tag: str = field(converter=plain)
    match: re.Pattern[str] | None = field(default=None, converter=_pattern, kw_only=True)
    when: Callable[[Any], object] | None = field(default=None, kw_only=True)

    def __attrs_post_init__(self) -> None:
        _check_tag("a rule's tag", self.tag)
        wrong = None if self.when is None else wrong_function(self.when, "it is not awaited", ("exc",))
        if wrong is not None:
            refuse(TypeError(f"a rule's when {wrong}"))

    def fits(self, exc: BaseException) -> bool:
        """Whether this rule gives its tag to `exc`."""
        return (
            any(cls in self.exceptions for cls in _matching(exc))
            and (self.match is None or self.match.search(str(exc)) is not None)
            and (self.when is None or bool(self.when(exc)))
        )


Key = str | type[BaseException]


def _table(value: Mapping[Key, Directive]) -> Mapping[Key, Directive]:
    table: dict[Key, Directive] = {}
    if not is_a(value, Mapping):
        refuse(TypeError(f"a decider's table must be a mapping, got {brief(value)}"))
        return MappingProxyType(table)
    try:
        table = {plain(key): directive for key, directive in value.items()}
    except Exception as problem:  # noqa: BLE001 - a user's mapping, and his keys, may raise anything
        refuse(TypeError(f"a decider's table cannot be read: {brief(problem)}"))
    return MappingProxyType(table)


def _only_rules(value: Any) -> tuple[Rule, ...]:
    try:
        given: tuple[object, ...] | None = None if is_a(value, (Rule, str)) else tuple(value)
    except Exception:  # noqa: BLE001 - as above
        given = None
    if given is None:
        refuse(TypeError(f"a decider's rules must be a list of Rules, got {brief(value)}"))
        given = ()
    for rule in given:
        if not is_a(rule, Rule):
            refuse(TypeError(f"a decider's rules must be Rules, got {brief(rule)}"))
    return cast("tuple[Rule, ...]", tuple(rule for rule in given if is_a(rule, Rule)))


def _only_decider(value: Any) -> Decider | None:
    if value is None or is_a(value, Decider):
        return cast("Decider | None", value)
    refuse(TypeError(f"a decider's beneath must be a Decider or None, got {brief(value)}"))
    return None


def _rules(decider: Decider) -> tuple[Rule, ...]:
    """Those of all layers, top first."""
    return tuple(rule for layer in decider.layers() for rule in layer.rules)


@frozen(eq=False, repr=False)
class Decider(Code):
    """An ordered, pure table from tags and exception classes to directives (R2).

    Looked up in this order: the exact tag, its shorter prefixes (`device.oom` → `device`), the exception's class
    along its MRO, `default`; then the decider beneath, see `over`. A group is flattened, each member is decided, the
    most severe directive wins; it is matched whole only by an entry that names a group class (R3).

    Args:
        table: tags and exception classes, each with its directive.
        rules: give tags; the first that fits wins. A tag that the exception carries (`exc.tag`) comes first.
        default: for what the table does not name; None asks the decider beneath.
    """

    table: Mapping[Key, Directive] = field(factory=dict[Key, Directive], converter=_table)
    rules: tuple[Rule, ...] = field(
        default=(), converter=_only_rules, kw_only=True, metadata={"as list": True}
    )
    default: Directive | None = field(default=None, kw_only=True)
    beneath: Decider | None = field(default=None, converter=_only_decider, kw_only=True)
    _all_rules: tuple[Rule, ...] = field(init=False, repr=False, default=Factory(_rules, takes_self=True))
    _answers: dict[tuple[type, str | None], Directive] = field(init=False, repr=False, factory=dict[Any, Any])

    def __attrs_post_init__(self) -> None:
        for key, directive in self.table.items():
            if not _is_exception_class(key):
                _check_tag("a decider's key, if not an exception class,", key)
            if not is_a(directive, Directive):
                refuse(
                    TypeError(
                        f"a decider maps {brief(key)} to Resume, Restart, Stop or Escalate, got {brief(directive)}"
                    )
                )
        if not (self.default is None or is_a(self.default, Directive)):
            refuse(TypeError(f"a decider's default must be a directive or None, got {brief(self.default)}"))

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy, or what comes out of a pickle, is made anew: a `MappingProxyType` can be neither."""
        return _made_again, (dict(self.table), self.rules, self.default, self.beneath)

    def over(self, other: Decider) -> Decider:
        """This decider, and `other` for whatever this one does not answer."""
        if not is_a(other, Decider):
            raise TypeError(f"a decider goes over another Decider, got {brief(other)}")
        for layer in reversed(list(self.layers())):
            other = evolve(layer, beneath=other)
        return other

    def layers(self) -> Iterator[Decider]:
        """This decider and those beneath, top first."""
        layer: Decider | None = self
        while layer is not None:
            yield layer
            layer = layer.beneath

    def tag(self, exc: BaseException) -> str | None:
        """The tag that `exc` carries, or that the first fitting rule gives it (R1)."""
        carried = getattr(exc, "tag", None)
        if isinstance(carried, str):
            return carried
        return next((rule.tag for rule in self._all_rules if rule.fits(exc)), None)

    def looked_up(self, exc: Exception) -> tuple[str | None, Directive | None]:
        """The tag that `exc` carries, and the verdict; None where it takes more than a look: a rule, or a group.

        Class and tag alone decide, so the last few answers are remembered.
        """
        if self._all_rules:
            return None, None
        try:
            tag = getattr(exc, "tag", None)
        except Exception:  # noqa: BLE001 - that it raises is a matter for `judge` (R5)
            return None, None
        key = type(exc), tag if isinstance(tag, str) else None
        found = self._answers.get(key)
        if found is None and not isinstance(exc, BaseExceptionGroup):
            answer = self.directive(exc, key[1])
            found = Restart if answer is None else answer
            if len(self._answers) >= _REMEMBERED:
                self._answers.clear()
            self._answers[key] = found
        return key[1], found

    def _named(self, exc: BaseException, tag: str | None) -> Directive | None:
        """What this layer's table says, its default aside."""
        prefix = tag
        while prefix:
            if prefix in self.table:
                return self.table[prefix]
            prefix = prefix.rpartition(".")[0]
        if tag in FRAMEWORK_TAGS:
            return None
        return next((self.table[cls] for cls in _matching(exc) if cls in self.table), None)

    def directive(self, exc: BaseException, tag: str | None) -> Directive | None:
        """The first answer of the layers to one exception that is no group to be flattened; None: nobody has one."""
        for layer in self.layers():
            found = layer._named(exc, tag)
            if found is None and tag not in FRAMEWORK_TAGS:
                found = layer.default
            if found is not None:
                return found
        return None


def _made_again(
    table: dict[Key, Directive], rules: tuple[Rule, ...], default: Directive | None, beneath: Decider | None
) -> Decider:
    return Decider(table, rules=rules, default=default, beneath=beneath)


ROOT = Decider(default=Restart)
"""Beneath every root: what nobody names is restarted."""

OTP = Decider(default=Restart)
"""Every failure → Restart, as Erlang/OTP does."""

AKKA = Decider({"start": Stop, Exception: Restart}, default=Escalate)
"""The classic default of Akka: a start that hangs or is refused → Stop, an `Exception` → Restart, else Escalate."""

DEVICE = Decider(
    {"device.poisoned": Restart, "device.oom": Resume, "device.unrecoverable": Stop},
    default=Escalate,
)
"""For a device's context (D3): poisoned → Restart, out of memory → Resume, unrecoverable → Stop, else Escalate."""


@frozen(repr=False, eq=False)
class Verdict(Value):
    """What a decider made of a failure.

    `exc` is the failure, or what the decider itself raised on it (R5); for a group `tag` is the decisive member's.
    """

    directive: Directive
    tag: str | None
    exc: BaseException


def judge(
    decider: Decider, exc: BaseException, tag: str | None = None, *, otherwise: Directive = Restart
) -> Verdict:
    """Decide one failure. `tag` is what is already known of it, from a supervisor further down (R11).

    `otherwise` is the answer to a failure that no table answers.
    """
    try:
        return _judge(decider, exc, tag, otherwise)
    except Exception as broken:  # noqa: BLE001 - R5: whatever a rule, a predicate or str() raises
        _chain(broken, exc)
        return Verdict(Escalate, None, broken)


def _chain(later: BaseException, earlier: BaseException) -> None:
    """Hang `earlier` at the end of `later`'s contexts, unless it is among them."""
    seen = {id(earlier)}
    while id(later) not in seen:
        if later.__context__ is None:
            later.__context__ = earlier
        seen.add(id(later))
        later = later.__context__


def _judge(decider: Decider, exc: BaseException, tag: str | None, otherwise: Directive) -> Verdict:
    tag = tag or decider.tag(exc)
    group = as_group(exc)
    if group is None or tag is not None or _named_whole(decider, exc):
        found = decider.directive(exc, tag)
        return Verdict(otherwise if found is None else found, tag, exc)
    members = [_judge(decider, member, None, otherwise) for member in group.exceptions]
    worst = max(members, key=lambda verdict: verdict.directive)
    return Verdict(worst.directive, worst.tag, exc)


def _named_whole(decider: Decider, exc: BaseException) -> bool:
    """Whether some layer has an entry for this group's class."""
    return any(layer._named(exc, None) is not None for layer in decider.layers())
