"""Errors of an evaluation that a user can act on."""

from __future__ import annotations

from vita_audio.contract.errors import VitaError


class EvaluationError(VitaError):
    """An evaluation cannot start or go on: no test split, no recogniser, a stream without an end, a full disk."""
