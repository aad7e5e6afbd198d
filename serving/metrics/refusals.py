"""Counts requests that are answered with an error, by the stage that refused and why."""

from __future__ import annotations

from serving.metrics.recorder import Recorder
from vita_audio.contract.errors import BadMessage, InvalidRequest, ServerFull, ServerStopping, ServerUnhealthy

_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (InvalidRequest, "invalid_request"),
    (ServerFull, "server_full"),
    (ServerStopping, "server_stopping"),
    (ServerUnhealthy, "unhealthy"),
    (BadMessage, "bad_message"),
)
OTHER_REASON = "internal_error"


class Refusals:
    """One stage's refusals; all reasons show from the start, at 0."""

    def __init__(self, recorder: Recorder, stage: str) -> None:
        self._recorder, self._stage = recorder, stage
        for reason in (*(name for _, name in _REASONS), OTHER_REASON):
            self._add(reason, "", 0)

    def count(self, error: Exception) -> None:
        """A request was answered with `error`."""
        reason = next((name for kind, name in _REASONS if isinstance(error, kind)), OTHER_REASON)
        self._add(reason, error.field if isinstance(error, InvalidRequest) else "", 1)

    def _add(self, reason: str, field: str, amount: int) -> None:
        self._recorder.add("vita_requests_refused_total", amount, stage=self._stage, reason=reason, field=field)
