"""What is done before a server is ready, so that the first caller does not wait for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import serving.warm_up
from decoding_doubles import FlowDouble, VocoderDouble
from generation_doubles import CountingEngine
from serving.seal import new_secret
from serving.warm_up import warm_up_generation
from vita_audio.contract.errors import EngineError
from vita_audio.contract.limits import Limits
from vita_audio.contract.messages import Delta, State, Status
from vita_audio.decoding.decoder import StreamingDecoder
from vita_audio.engines.interface import BurstRow
from vita_audio.generation.request import GenerationRequest
from vita_audio.generation.service import GenerationService, GenerationStats

ROOT = Path(__file__).resolve().parents[2]
LIMITS = Limits(context_tokens=64, max_tokens=30, default_max_tokens=30, mctp_modules=10, default_pattern=(1, 4, 2, 4))


@pytest.mark.parametrize("stage", ["prompt", "speech_tokenizer", "speech_lm", "audio_decoder"])
def test_the_first_request_imports_nothing(stage: str, engines: Path) -> None:
    run = subprocess.run(
        [sys.executable, "tests/helpers/first_request.py", stage],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "VITA_ENGINES": str(engines),
            "VITA_SECRET": new_secret(),
            "VITA_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout.splitlines()[-1]) == []


def test_generation_is_warmed_up_in_the_mode_of_the_checkpoint_and_counts_for_nothing() -> None:
    engine = CountingEngine()
    service = GenerationService(engine, ())
    warm_up_generation(service, LIMITS)
    bursts = {row.commit for rows in engine.calls for row in rows if isinstance(row, BurstRow) and row.index}
    assert bursts == {LIMITS.default_pattern[1]}
    assert not engine.opened
    assert service.stats() == GenerationStats(0, 0, 0, 0, 0.0, {})
    service.close()


class Service:
    """A generation service whose streams end as told, or never."""

    def __init__(self, state: State | None, reason: str = "") -> None:
        self._states: list[State] = ["running", *([state] if state else [])]
        self._reason = reason

    def submit(self, stream: str, request: GenerationRequest, emit: Callable[[Delta], None]) -> None:
        for index, state in enumerate(self._states):
            emit(Delta(Status(stream, index, state, self._reason, "chat", "warm-up", 0, {}), [1]))


@pytest.mark.parametrize(
    ("service", "said"),
    [(Service("failed", "weights are broken"), "failed: weights are broken"), (Service(None), "did not end within 0")],
)
def test_a_warm_up_that_fails_or_hangs_is_an_error(
    service: Service, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving.warm_up, "WARM_UP_TIMEOUT_S", 0.05)
    with pytest.raises(EngineError, match=said):
        warm_up_generation(service, LIMITS)  # type: ignore[arg-type]


def geometries(decoder: StreamingDecoder, tokens: int) -> list[int]:
    """Of the decodes of a stream, in their order."""
    state, found = decoder.init(0), []
    decoder.feed(state, [0] * tokens, end=True)
    while (due := decoder.due(state)) is not None:
        found.append(due)
        decoder.step([state])
    return found


@pytest.mark.parametrize("first_chunk_only", [False, True])
def test_the_decoder_is_warmed_up_where_a_first_sound_comes_from(first_chunk_only: bool) -> None:
    flow, vocoder = FlowDouble(), VocoderDouble()
    decoder = StreamingDecoder(flow, vocoder)
    expected = geometries(StreamingDecoder(FlowDouble(), VocoderDouble()), 8 if first_chunk_only else 400)[:-1]
    decoder.warm_up(3, first_chunk_only)
    for batch in (1, 2, 4):
        # All but the end, which depends on the number of tokens.
        assert {frames for streams, frames in flow.batches if streams == batch} == set(expected)
        assert any(streams == batch for streams, _ in vocoder.batches)
    state = decoder.init(0)
    assert state.voiced_frames == 0
