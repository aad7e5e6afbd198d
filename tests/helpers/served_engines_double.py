"""What a stage finds when it opens the engines of a server: no number is equal to another."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from serving.settings import ServingSettings

SLOTS, QUEUE, THREADS, CHUNK, BATCH, CONTEXT = 3, 5, 7, 11, 13, 17
END_TOKENS = (19, 23)


def serve_with_doubles(module: Any, monkeypatch: pytest.MonkeyPatch, folder: Path, gpu: object = None) -> Any:
    """Replace `served_engines` of a stage's module; returns the source it hands out."""
    settings = ServingSettings(folder, SLOTS, QUEUE, THREADS, "cpu", folder / "admission")
    vocabulary, limits = SimpleNamespace(end_tokens=END_TOKENS), SimpleNamespace(context_tokens=CONTEXT)
    manifest = SimpleNamespace(vocabulary=vocabulary, limits=limits)
    source = SimpleNamespace(gpu=gpu, prefill_chunk=CHUNK, decoder_batch=BATCH)
    monkeypatch.setattr(module, "served_engines", lambda: (settings, manifest, source))
    return source
