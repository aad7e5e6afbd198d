"""The one error of the launcher: why the server cannot start, in one line."""

from __future__ import annotations

from vita_audio.contract.errors import VitaError


class CannotStart(VitaError):
    """A check before the start failed, or Triton ended before it was ready. The text names the cause and the remedy."""
