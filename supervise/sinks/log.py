"""The default sink: one log record for each decision, its level by the directive (R31)."""

from __future__ import annotations

import logging
from typing import Any

import attrs

from .._core._brief import brief
from .._core._check import is_a
from .._core.decide import traceback_of
from .._core.directive import Directive
from ..events import (
    BackingOff,
    Decided,
    Event,
    Overdue,
    Ready,
    Starting,
    StartOverdue,
    StopError,
    Stopped,
    Stopping,
)
from . import _words

_LEVELS = {
    Directive.Resume: logging.WARNING,
    Directive.Restart: logging.WARNING,
    Directive.Stop: logging.ERROR,
    Directive.Escalate: logging.CRITICAL,
}


class LoggingSink:
    """Writes decisions, stop errors and overdue children to a logger, by default `supervise`.

    Each record has the fields of its event as attributes, for formatters that write them: `event` (its kind), `path`,
    `incarnation`, and of a decision `directive`, `tag`, `by`, `because`, `decider`, `entry`, `applied_to`, `limit`,
    `attempt`. The traceback of a failure is attached to its record where the logger is enabled for DEBUG, and always
    where a first start failed.

    Args:
        logger: None is the one named `supervise`.
        lifecycle: also write, at level INFO, when the tree starts, is ready, is asked to stop and has stopped, and at
            level DEBUG the same of every node.
    """

    def __init__(self, logger: logging.Logger | None = None, *, lifecycle: bool = False) -> None:
        self._logger = logger or logging.getLogger("supervise")
        self._lifecycle = lifecycle
        self._said: BaseException | None = None

    def __call__(self, event: Event) -> None:
        """Take one event."""
        if isinstance(event, Decided):
            self._decided(event)
        elif isinstance(event, StopError):
            self._log(logging.ERROR, event, f"failed while stopping: {brief(event.exc)}")
        elif isinstance(event, Overdue):
            self._log(
                logging.WARNING,
                event,
                f"has not ended {event.seconds:.3g} s after it was told to\n{event.stack}",
            )
        elif isinstance(event, StartOverdue):
            waits = "" if event.waits_for is None else f", and waits for {event.waits_for!r}"
            self._log(
                logging.WARNING, event, f"is not ready after {event.seconds:.3g} s{waits}\n{event.stack}"
            )
        elif self._lifecycle:
            self._lived(event)

    def _lived(self, event: Event) -> None:
        level = logging.DEBUG if "/" in event.path else logging.INFO
        match event:
            case Starting():
                self._log(level, event, "starts")
            case Ready():
                self._log(level, event, "is ready")
            case Stopping(reason=reason):
                self._log(level, event, f"is being stopped: {reason}")
            case Stopped():
                self._log(level, event, "has stopped")
            case BackingOff(delay=delay):
                self._log(logging.INFO, event, f"waits {delay:.2f} s before its next start")
            case _:
                pass

    def _decided(self, event: Decided) -> None:
        level = logging.ERROR if event.directive is None else _LEVELS[event.directive]
        first = event.because == "first start"
        news = first and event.exc is not self._said  # it goes up through each supervisor that is starting
        self._said = event.exc if first else None
        if not self._logger.isEnabledFor(level):
            return
        verdict = event.because if event.directive is None else repr(event.directive)
        tag = f" [{event.tag}]" if event.tag else ""
        entry = _words.answer(event)
        said = f"failed: {brief(event.exc)}{tag} → {verdict}, by {event.by}{f' ({entry})' if entry else ''}"
        traced = self._logger.isEnabledFor(logging.DEBUG) or news
        self._log(level, event, said + _words.consequences(event), exc=event.exc if traced else None)

    def _log(self, level: int, event: Event, said: str, *, exc: BaseException | None = None) -> None:
        if self._logger.isEnabledFor(level):
            text = "%s #%d %s"
            # As a tuple: what is given as an exception is first asked whether it is true.
            traced = None if exc is None else (type(exc), exc, traceback_of(exc))
            self._logger.log(
                level, text, event.path, event.incarnation, said, exc_info=traced, extra=_fields(event)
            )


def _fields(event: Event) -> dict[str, Any]:
    """What the record says of its event, apart from the text."""
    fields: dict[str, Any] = {"event": type(event).__name__}
    for field in attrs.fields(type(event)):
        value = getattr(event, field.name)
        if is_a(value, Directive):
            value = value.name
        users = is_a(value, BaseException) or field.name == "value"
        fields[field.name] = brief(value) if users else value
    return fields
