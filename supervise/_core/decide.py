"""From an exception to a tag, and from the tag to a directive (R1–R5)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextvars import Context
from types import MappingProxyType, TracebackType
from typing import Any, NamedTuple, cast

from attrs import Factory, evolve, field, frozen

from ._brief import as_group, brief, members
from ._call import wrong_function
from ._check import is_a, plain, refuse
from ._code import Code
from ._value import Value
from .directive import Directive, Escalate, Restart, Resume, Stop

FRAMEWORK_TAGS = frozenset({"returned", "limit"})
_REMEMBERED = 64  # the answers that one decider caches: tags may be any string
_DOTTED = re.compile(r"\w+(\.\w+)*")


def _is_exception_class(value: object) -> bool:
    return is_a(value, type) and issubclass(cast("type", value), BaseException)


def is_decidable(exc: BaseException) -> bool:
    """Whether `exc` is an `Exception`; any other exception is never decided (R4)."""
    return issubclass(type(exc), Exception)


def is_interrupt(exc: BaseException) -> bool:
    """Whether `exc` is a KeyboardInterrupt or a group that holds one, as a nursery in the user's code wraps it."""
    waiting, seen = [exc], set[int]()
    for one in waiting:
        if issubclass(type(one), KeyboardInterrupt):
            return True
        group = as_group(one)
        if group is not None and id(group) not in seen:
            seen.add(id(group))
            waiting += members(group)
    return False


_OWN: Mapping[str, Any] = vars(BaseException)
"""The attributes that every exception has; the user's class may refuse to read or write them, or lie."""


def context_of(exc: BaseException) -> BaseException | None:
    """`exc.__context__`, even if its class overrides access to attributes."""
    context: BaseException | None = _OWN["__context__"].__get__(exc)
    return context


def set_context(later: BaseException, earlier: BaseException | None) -> None:
    """`later.__context__ = earlier`, even if its class forbids that, as a frozen dataclass does."""
    _OWN["__context__"].__set__(later, earlier)


def cause_of(exc: BaseException) -> BaseException | None:
    """`exc.__cause__`, even if its class overrides access to attributes."""
    cause: BaseException | None = _OWN["__cause__"].__get__(exc)
    return cause


def set_cause(later: BaseException, earlier: BaseException | None) -> None:
    """`later.__cause__ = earlier`, even if its class forbids that."""
    _OWN["__cause__"].__set__(later, earlier)


def traceback_of(exc: BaseException) -> TracebackType | None:
    """`exc.__traceback__`, even if its class overrides access to attributes."""
    trace: TracebackType | None = _OWN["__traceback__"].__get__(exc)
    return trace


def _matching(exc: BaseException) -> tuple[type[Any], ...]:
    """The classes that match an exception, the nearest first; only group classes match a group (R3)."""
    kind: type[Any] = BaseException if as_group(exc) is None else BaseExceptionGroup
    return tuple(cls for cls in type(exc).__mro__ if issubclass(cls, kind))


def _check_tag(what: str, tag: object) -> None:
    if not (type(tag) is str and _DOTTED.fullmatch(tag)):
        refuse(ValueError(f"{what} must be a dotted tag such as 'device.oom', got {brief(tag)}"))


def _classes(value: object) -> tuple[type[BaseException], ...]:
    classes: tuple[Any, ...] = cast("tuple[object, ...]", value) if is_a(value, tuple) else (value,)
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
        return value
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
    """Gives a tag to an exception. Every rule needs a class: none matches on text without one (R1).

    Args:
        exceptions: an exception class or a tuple of them.
        tag: a dotted string, such as `"db.gone"`.
        match: a regular expression that `str(exception)` must contain; None accepts any text.
        when: a plain function of the exception whose result must be true; if it raises, that means Escalate (R5).

    Raises:
        TypeError, ValueError: for an argument of another type, a tag that is not dotted, or a broken expression.
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
    except Exception as problem:  # noqa: BLE001 - a user's mapping, and its keys, may raise anything
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
    """The rules of all layers, top first."""
    return tuple(rule for layer in decider.layers() for rule in layer.rules)


class Answer(NamedTuple):
    """The answer of a table to a failure, with the node of its decider and the entry that gave it, see `Judgement`."""

    directive: Directive
    node: str
    entry: str


@frozen(eq=False, repr=False)
class Decider(Code):
    """An ordered, pure table from tags and exception classes to directives (R2).

    A decider looks up, in this order: the exact tag, its shorter prefixes (`device.oom` → `device`), the classes of the
    exception along its MRO, `default`; then it asks the decider beneath, see `over`. It flattens a group, decides each
    member, and the most severe directive wins; only an entry that names a group class matches a group as a whole (R3).

    Args:
        table: tags and exception classes, each with its directive.
        rules: the rules that give tags; the first that fits wins. The exception's own tag (`exc.tag`) takes precedence.
        default: the directive for failures that the table does not name; None asks the decider beneath.
        beneath: the decider that is asked for failures that this one does not answer; usually set by `over`.

    Raises:
        TypeError, ValueError: for an argument of another type, or a key that is neither a dotted tag nor an exception class.
    """

    table: Mapping[Key, Directive] = field(factory=dict[Key, Directive], converter=_table)
    rules: tuple[Rule, ...] = field(
        default=(), converter=_only_rules, kw_only=True, metadata={"as list": True}
    )
    default: Directive | None = field(default=None, kw_only=True)
    beneath: Decider | None = field(default=None, converter=_only_decider, kw_only=True)
    _node: str = field(default="", kw_only=True, repr=False, alias="_node")
    """The path of the node that this decider belongs to; empty outside a tree, and for `ROOT`."""
    _all_rules: tuple[Rule, ...] = field(init=False, repr=False, default=Factory(_rules, takes_self=True))
    _answers: dict[tuple[type, str | None], Answer] = field(init=False, repr=False, factory=dict[Any, Any])

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
        """Copy and pickle by constructing anew: a `MappingProxyType` supports neither."""
        return _made_again, (dict(self.table), self.rules, self.default, self.beneath, self._node)

    def over(self, other: Decider) -> Decider:
        """This decider, with `other` beneath it for failures that this one does not answer (R2). Raises TypeError for another type."""
        if not is_a(other, Decider):
            raise TypeError(f"a decider goes over another Decider, got {brief(other)}")
        return self._over(other, self._node)

    def at(self, path: str, above: Decider) -> Decider:
        """This decider as that of the node at `path`, over the decider above it."""
        return self._over(above, path)

    def _over(self, other: Decider, node: str) -> Decider:
        for layer in reversed(list(self.layers())):
            other = evolve(layer, beneath=other, _node=node)
        return other

    def layers(self) -> Iterator[Decider]:
        """This decider and those beneath it, top first."""
        layer: Decider | None = self
        while layer is not None:
            yield layer
            layer = layer.beneath

    def tag(self, exc: BaseException) -> str | None:
        """The tag that `exc` carries, else that of the first rule that fits it; None if there is neither (R1)."""
        carried: object = getattr(exc, "tag", None)
        if issubclass(type(carried), str):
            return str.__str__(cast("str", carried))
        return next((rule.tag for rule in self._all_rules if rule.fits(exc)), None)

    def looked_up(self, exc: Exception) -> tuple[str | None, Answer | None]:
        """The tag that `exc` carries, and the answer; the answer is None if a rule or a group must be evaluated.

        Only class and tag decide here, so the answers are cached.
        """
        if self._all_rules:
            return None, None
        try:
            tag = Context().run(getattr, exc, "tag", None)
            if tag is not None and type(tag) is not str:
                if issubclass(type(tag), str):
                    return None, None
                tag = None
            key = type(exc), tag
            found = self._answers.get(key)
            if found is None and as_group(exc) is None:
                found = self.answer(exc, tag) or Answer(Restart, "", "rule")
                if len(self._answers) >= _REMEMBERED:
                    self._answers.clear()
                self._answers[key] = found
        except BaseException:  # noqa: BLE001 - the general path asks again, and there `judge` handles the exception (R4, R5)
            return None, None
        return tag, found

    def _named(self, exc: BaseException, tag: str | None) -> Answer | None:
        """The answer of this layer's table, without its default."""
        prefix = tag
        while prefix:
            if prefix in self.table:
                return Answer(self.table[prefix], self._node, f"tag {prefix!r}")
            prefix = prefix.rpartition(".")[0]
        if tag in FRAMEWORK_TAGS:
            return None
        for cls in _matching(exc):
            if cls in self.table:
                return Answer(self.table[cls], self._node, f"class {cls.__name__}")
        return None

    def answer(self, exc: BaseException, tag: str | None) -> Answer | None:
        """The first answer of the layers to one exception, which is not flattened; None if no layer has an answer."""
        for layer in self.layers():
            found = layer._named(exc, tag)
            if found is None and tag not in FRAMEWORK_TAGS and layer.default is not None:
                found = Answer(layer.default, layer._node, "default" if layer._node else "rule")
            if found is not None:
                return found
        return None

    def directive(self, exc: BaseException, tag: str | None) -> Directive | None:
        """The directive of `answer(exc, tag)`; None if there is no answer."""
        found = self.answer(exc, tag)
        return None if found is None else found.directive


def _made_again(
    table: dict[Key, Directive],
    rules: tuple[Rule, ...],
    default: Directive | None,
    beneath: Decider | None,
    node: str,
) -> Decider:
    return Decider(table, rules=rules, default=default, beneath=beneath, _node=node)


ROOT = Decider(default=Restart)
"""The decider beneath every root: a failure that no other decider names means Restart."""

OTP = Decider(default=Restart)
"""Every failure → Restart, as Erlang/OTP does."""

AKKA = Decider({"start": Stop, Exception: Restart}, default=Escalate)
"""The classic default of Akka: a failed start (tags `start.…`) → Stop, an `Exception` → Restart, else Escalate.

A start has failed in this sense if it timed out, or if the body returned before it was ready.
"""

DEVICE = Decider(
    {"device.poisoned": Restart, "device.oom": Resume, "device.unrecoverable": Stop},
    default=Escalate,
)
"""For the context of a device (D3): poisoned → Restart, out of memory → Resume, unrecoverable → Stop, else Escalate."""


class Judgement(NamedTuple):
    """The answer of a decider to a failure.

    Args:
        directive: Escalate if the decider itself raised (R5).
        tag: the tag of the failure; of a group, that of the decisive member.
        exc: the failure, or the exception that the decider raised on it.
        node: the path of the node whose decider answered; empty for the built-in rules.
        entry: the entry that answered: `tag 'device.oom'`, `class OSError`, `default`, or `rule` for a built-in rule.
        raised: whether the decider raised.
    """

    directive: Directive
    tag: str | None
    exc: BaseException
    node: str = ""
    entry: str = "rule"
    raised: bool = False


def judge(
    decider: Decider, exc: BaseException, tag: str | None = None, *, otherwise: Directive = Restart
) -> Judgement:
    """Decide one failure. `tag`: the tag that a supervisor further down has already given it (R11).

    `otherwise`: the answer to a failure that no table answers. Rules and predicates run in an empty context, since the
    machine may run in the context of any task (R2).
    """
    try:
        return Context().run(_judge, decider, exc, tag, otherwise)
    except BaseException as broken:  # noqa: BLE001 - R5: a rule, a predicate or str() may raise anything; R4 covers those that are no Exception
        _chain(broken, exc)
        return Judgement(Escalate, None, broken, raised=True)


def _chain(later: BaseException, earlier: BaseException) -> None:
    """Append `earlier` to the chain of `later.__context__`, unless it is already in the chain."""
    seen = {id(earlier)}
    while id(later) not in seen:
        seen.add(id(later))
        before = context_of(later)
        if before is None:
            set_context(later, earlier)
            return
        later = before


def _judge(decider: Decider, exc: BaseException, tag: str | None, otherwise: Directive) -> Judgement:
    tag = tag or decider.tag(exc)
    group = as_group(exc)
    if group is None or tag is not None or _named_whole(decider, exc):
        found = decider.answer(exc, tag) or Answer(otherwise, "", "rule")
        return Judgement(found.directive, tag, exc, found.node, found.entry)
    verdicts = [_judge(decider, member, None, otherwise) for member in _flattened(decider, group)]
    return max(verdicts, key=lambda verdict: verdict.directive)._replace(exc=exc)


def _flattened(decider: Decider, group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    """The exceptions of a group that are decided one by one. Groups may be deep and shared, so it walks a list, each group once."""
    found: list[BaseException] = []
    waiting: list[BaseException] = [group]
    seen: set[int] = set()
    while waiting:
        one = waiting.pop()
        inner = as_group(one)
        if inner is None or (
            one is not group and (decider.tag(one) is not None or _named_whole(decider, one))
        ):
            found.append(one)
        elif id(inner) not in seen:
            seen.add(id(inner))
            waiting += reversed(members(inner))
    return found


def _named_whole(decider: Decider, exc: BaseException) -> bool:
    """Whether a layer has an entry for the class of this group."""
    return any(layer._named(exc, None) is not None for layer in decider.layers())
