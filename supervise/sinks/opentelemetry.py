"""Traces and log records for OpenTelemetry: a span for each start and each recovery, a record for each event."""

from __future__ import annotations

import logging
import time
from typing import Any, Final, cast

from ..events import Event, Failed, describe
from ._intervals import Interval, Intervals
from ._levels import level_of
from .data import as_data

try:
    from opentelemetry import _logs, trace
    from opentelemetry._logs import Logger, LogRecord, SeverityNumber
    from opentelemetry.context import Context
    from opentelemetry.trace import INVALID_SPAN, Status, StatusCode, Tracer, set_span_in_context
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        "supervise.sinks.opentelemetry needs opentelemetry-api: pip install 'trio-supervise[opentelemetry]'"
    ) from missing

_NO_SPAN: Final = set_span_in_context(INVALID_SPAN, Context())
"""The context of all spans and records. An event has no current span of its own: the one that its task sees was current where
the tree was opened. The context is not empty, because OpenTelemetry takes an empty one for none at all."""

_SEVERITIES: Final = {
    logging.DEBUG: SeverityNumber.DEBUG,
    logging.INFO: SeverityNumber.INFO,
    logging.WARNING: SeverityNumber.WARN,
    logging.ERROR: SeverityNumber.ERROR,
    logging.CRITICAL: SeverityNumber.FATAL,
}

_WENT_WELL: Final = ("ready", "resumed", "ignored", "stopped")


class OpenTelemetrySink:
    """A sink that makes a span of each start and of each recovery, and a log record of each event (R31).

    A span `supervise.start` goes from the start of a node until it is ready or has failed, a span `supervise.recovery` from its
    failure until it is ready again or given up. Each is made when it ends, with the decision as attributes, so nothing stays open
    while a node is well. The body of a record is the event in the schema of `supervise.sinks.data.as_data`, with
    the key `text` for the event in words.

    The sink makes no provider, and shuts none down: that is the program's, see `docs/operating/metrics.md`. If a tracer or logger raises,
    the tree reports it once and goes on without this sink.

    Args:
        tracer: None is that of the global tracer provider.
        logger: None is that of the global logger provider.
    """

    def __init__(self, tracer: Tracer | None = None, logger: Logger | None = None) -> None:
        self._tracer = trace.get_tracer("supervise") if tracer is None else tracer
        self._logger = _logs.get_logger("supervise") if logger is None else logger
        self._intervals = Intervals()
        self._number = 0

    def __call__(self, event: Event) -> None:
        """Emit the record of one event, and the spans that end with it."""
        now = time.time_ns()
        self._number += 1
        self._logger.emit(_record(event, self._number, now))
        for interval in self._intervals.take(event):
            self._trace(interval, now)

    def _trace(self, interval: Interval, now: int) -> None:
        """A span that ends now. Its length is that on Trio's clock, which no change of the system's time disturbs."""
        began = now - round(interval.seconds * 1e9)
        span = self._tracer.start_span(
            f"supervise.{interval.kind}", _NO_SPAN, attributes=_attributes(interval), start_time=began
        )
        if interval.decision is not None and span.is_recording():
            span.add_event("exception", _exception(interval), timestamp=began)
        if interval.outcome not in _WENT_WELL:
            span.set_status(Status(StatusCode.ERROR, interval.outcome))
        span.end(now)


def _record(event: Event, number: int, now: int) -> LogRecord:
    severity = _SEVERITIES[level_of(event)]
    return LogRecord(
        timestamp=now,
        context=_NO_SPAN,
        severity_number=severity,
        severity_text=severity.name,
        event_name=f"supervise.{type(event).__name__}",
        body=_sendable({**as_data(event, number=number, time=now / 1e9), "text": describe(event)}),
        attributes=_sendable({"supervise.path": event.path, "supervise.incarnation": event.incarnation}),
    )


def _attributes(interval: Interval) -> dict[str, Any]:
    """Its node, how it ended, and the fields of its decision that have a value."""
    attributes: dict[str, Any] = {
        "path": interval.began.path,
        "incarnation": interval.began.incarnation,
        "outcome": interval.outcome,
        "failures": interval.failures,
    }
    if interval.decision is not None:
        decision = as_data(interval.decision, number=0, time=0.0)
        attributes |= {name: decision[name] for name in _OF_A_DECISION}
    return {f"supervise.{name}": value for name, value in _sendable(attributes).items()}


_OF_A_DECISION: Final = (
    "directive", "tag", "by", "because", "decider", "entry", "limit", "applied_to", "instead_of", "attempt"
)  # fmt: skip


def _exception(interval: Interval) -> dict[str, Any]:
    """The exception of a recovery's first failure, or of a failed start, under the names of OpenTelemetry."""
    failed = interval.began if isinstance(interval.began, Failed) else interval.decision
    assert failed is not None
    exception = _sendable(as_data(failed, number=0, time=0.0)["exc"])
    names = {"type": "type", "text": "message", "traceback": "stacktrace"}
    return {f"exception.{names[key]}": text for key, text in exception.items()}


def _sendable(data: dict[str, Any]) -> dict[str, Any]:
    """Without keys that have no value; and with texts that are UTF-8, since one that is not makes an exporter lose a whole batch."""
    values = {
        key: _sendable(cast("dict[str, Any]", value)) if isinstance(value, dict) else value
        for key, value in data.items()
    }
    return {
        key: value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value
        for key, value in values.items()
        if value is not None
    }
