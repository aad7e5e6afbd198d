"""Errors of training that a user can act on; each text is one readable line or a list of faults."""

from __future__ import annotations

from vita_audio.contract.errors import VitaError


class TrainingError(VitaError):
    """Training cannot start or go on: bad configuration, bad data, a full disk, a loss that is not a number."""


class Stopped(VitaError):
    """Training was asked to stop (SIGTERM, Ctrl-C); everything is saved and the same command goes on from there."""
