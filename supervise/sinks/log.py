"""The default sink: one log record for each decision, its level by the directive (R31)."""

from __future__ import annotations

import logging

from .._core.directive import Directive
from ..events import Decided, Event, Overdue, StopError

_LEVELS = {
    Directive.Resume: logging.WARNING,
    Directive.Restart: logging.WARNING,
    Directive.Stop: logging.ERROR,
    Directive.Escalate: logging.CRITICAL,
}


class LoggingSink:
    """Writes decisions, stop errors and overdue children to a logger, by default `supervise`.

    The traceback of a failure is attached to its record where the logger is enabled for DEBUG.
    """

    def __init__(self, logger: logging.Logger | None = None) -> None:
        self._logger = logger or logging.getLogger("supervise")

    def __call__(self, event: Event) -> None:
        """Take one event."""
        if isinstance(event, Decided):
            self._decided(event)
        elif isinstance(event, StopError):
            self._logger.error("%s #%d failed while stopping: %r", event.path, event.incarnation, event.exc)
        elif isinstance(event, Overdue):
            text = "%s #%d has not ended %.3g s after it was told to\n%s"
            self._logger.warning(text, event.path, event.incarnation, event.seconds, event.stack)

    def _decided(self, event: Decided) -> None:
        level = logging.ERROR if event.directive is None else _LEVELS[event.directive]
        verdict = event.because if event.directive is None else repr(event.directive)
        passed = f", limit of {event.by} passed: {event.limit}" if event.limit else ""
        tag = f" [{event.tag}]" if event.tag else ""
        text = "%s #%d failed: %r%s → %s, by %s%s"
        trace = event.exc if self._logger.isEnabledFor(logging.DEBUG) else None
        self._logger.log(
            level,
            text,
            event.path,
            event.incarnation,
            event.exc,
            tag,
            verdict,
            event.by,
            passed,
            exc_info=trace,
        )
