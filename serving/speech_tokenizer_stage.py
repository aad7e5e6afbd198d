"""The stage `speech_tokenizer`: 16 kHz speech -> audio token codes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from serving.heartbeat import Heartbeats
from serving.metrics.recorder import Recorder
from serving.metrics.refusals import Refusals
from serving.settings import served_engines
from serving.warm_up import warm_up_speech
from vita_audio.contract.errors import InvalidRequest
from vita_audio.contract.limits import MAX_AUDIO_SECONDS
from vita_audio.contract.rates import INPUT_SAMPLE_RATE_HZ
from vita_audio.engines.gpu_fault import gpu_is_lost
from vita_audio.engines.recently_used import RecentlyUsed
from vita_audio.engines.registry import open_speech_tokenizer
from vita_audio.speech_features import FeatureBlocks, speech_tokens

#: Of features that are kept for speech that goes on: 20 minutes of 128 mel bands.
KEPT_FEATURES_BYTES = 64 * 2**20


class SpeechTokenizerStage:
    """The engine of this server, warmed up. Raises EngineError when it cannot be opened."""

    def __init__(self, heartbeats: Heartbeats) -> None:
        self.recorder, self._pulse = Recorder(), heartbeats.pulse("execute")
        self.refusals = Refusals(self.recorder, "speech_tokenizer")
        self._made: FeatureBlocks = RecentlyUsed(KEPT_FEATURES_BYTES)
        self._engine = open_speech_tokenizer(served_engines()[2])
        warm_up_speech(self._engine)

    def codes(self, speech: NDArray[np.float32]) -> NDArray[np.int32]:
        """Codes of mono speech [samples].

        Raises:
            InvalidRequest: too long, empty or not finite. `prompt` has checked that; other callers have not.
        """
        if not 0 < speech.size <= MAX_AUDIO_SECONDS * INPUT_SAMPLE_RATE_HZ + 1 or not np.isfinite(speech).all():
            limit = f"it must be finite and have 1 sample to {MAX_AUDIO_SECONDS:g} s at 16 kHz"
            raise InvalidRequest("AUDIO", f"{speech.size} samples", limit, "send it through the model vita_audio")
        try:
            with self._pulse.call():
                return speech_tokens(self._engine, speech, self._made).astype(np.int32)
        except Exception as error:
            if gpu_is_lost(error):
                self._pulse.broken()
            raise
