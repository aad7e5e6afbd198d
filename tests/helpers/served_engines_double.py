"""What a stage finds when it opens the engines of a server: no number is equal to another."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from serving.heartbeat import Heartbeats
from serving.settings import ServingSettings
from vita_audio.pulse import Pulse

SLOTS, QUEUE, THREADS, CHUNK, BATCH, CONTEXT, RESTARTS = 3, 5, 7, 11, 13, 17, 29
END_TOKENS = (19, 23)


class NamedHeartbeats(Heartbeats):
    """Keeps the pulse that each thread got."""

    def __init__(self) -> None:
        super().__init__()
        self.pulses: dict[str, Pulse] = {}

    def pulse(self, thread: str) -> Pulse:
        self.pulses[thread] = super().pulse(thread)
        return self.pulses[thread]


def serve_with_doubles(module: Any, monkeypatch: pytest.MonkeyPatch, folder: Path, gpu: object = None) -> Any:
    """Replace `served_engines` of a stage's module; returns the source it hands out."""
    settings = ServingSettings(folder, SLOTS, QUEUE, THREADS, "cpu", folder / "admission", restarts=RESTARTS)
    vocabulary = SimpleNamespace(end_tokens=END_TOKENS, context_of_audio=None)
    limits = SimpleNamespace(context_tokens=CONTEXT)
    manifest = SimpleNamespace(vocabulary=vocabulary, limits=limits)
    source = SimpleNamespace(gpu=gpu, prefill_chunk=CHUNK, decoder_batch=BATCH)
    monkeypatch.setattr(module, "served_engines", lambda: (settings, manifest, source))
    return source
