"""The default sink: one log record for each decision, its level by the directive (R31)."""

from __future__ import annotations

import logging
from typing import Any

import attrs

from .._core._brief import brief, failure_line
from .._core._check import is_a
from .._core.directive import Directive
from ..events import (
    Adopted,
    Adopting,
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
    describe,
)
from ._levels import level_of
from .tracebacks import exc_info

_LIFECYCLE = (Starting, Ready, Stopping, Stopped, BackingOff, Adopting, Adopted)


class LoggingSink:
    """A sink that writes decisions, stop errors, and overdue children and starts to a logger (R31).

    A Resume or Restart is a WARNING, a Stop an ERROR, an Escalate CRITICAL; a failure without a decision is an ERROR. Each
    record has the fields of its event as attributes, for formatters: `event` (its kind), `path`, `incarnation`, and for a
    decision `directive`, `tag`, `by`, `because`, `decider`, `entry`, `applied_to`, `limit`, `attempt`. A record has the
    traceback of its failure if the logger is enabled for DEBUG, and always for a failed first start.

    Args:
        logger: None is the logger named `supervise`.
        lifecycle: also write, at level INFO, when the tree starts, is ready, is asked to stop and has stopped, takes another
            declaration, when a child backs off, and each request to stop, start or restart a node; at level DEBUG the same
            of every node.
    """

    def __init__(self, logger: logging.Logger | None = None, *, lifecycle: bool = False) -> None:
        self._logger = logger or logging.getLogger("supervise")
        self._lifecycle = lifecycle
        self._reported: BaseException | None = None  # the last failed first start

    def __call__(self, event: Event) -> None:
        """Write the record of one event, if it has one."""
        if isinstance(event, Decided):
            self._decided(event)
        elif isinstance(event, Overdue | StartOverdue):
            self._log(event, f"{describe(event)}\n{event.stack}")
        elif isinstance(event, StopError) or (self._lifecycle and isinstance(event, _LIFECYCLE)):
            self._log(event, describe(event))

    def _decided(self, event: Decided) -> None:
        first = event.because == "first start"
        # The same failure goes up through each supervisor that is starting; only its first record has the traceback.
        news = first and event.exc is not self._reported
        self._reported = event.exc if first else None
        if not self._logger.isEnabledFor(level_of(event)):
            return
        traced = self._logger.isEnabledFor(logging.DEBUG) or news
        text = f"failed: {failure_line(event.exc)} {describe(event)}"
        self._log(event, text, exc=event.exc if traced else None)

    def _log(self, event: Event, text: str, *, exc: BaseException | None = None) -> None:
        level = level_of(event)
        if self._logger.isEnabledFor(level):
            traced = exc_info(exc)
            self._logger.log(
                level, "%s #%d %s", event.path, event.incarnation, text, exc_info=traced, extra=_fields(event)
            )


def _fields(event: Event) -> dict[str, Any]:
    """The attributes of the record."""
    fields: dict[str, Any] = {"event": type(event).__name__}
    for field in attrs.fields(type(event)):
        value = getattr(event, field.name)
        if is_a(value, Directive):
            value = value.name
        users = is_a(value, BaseException) or field.name == "value"
        fields[field.name] = brief(value) if users else value
    return fields
