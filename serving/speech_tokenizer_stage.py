"""The stage `speech_tokenizer`: 16 kHz speech -> audio token codes, or embeddings where a Plus checkpoint is served."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from serving.heartbeat import Heartbeats
from serving.metrics.recorder import Recorder
from serving.metrics.refusals import Refusals
from serving.settings import served_engines
from serving.warm_up import warm_up_speech
from vita_audio.checkpoint.configs import SENSEVOICE
from vita_audio.contract.errors import InvalidRequest
from vita_audio.contract.limits import MAX_AUDIO_SECONDS
from vita_audio.contract.rates import INPUT_SAMPLE_RATE_HZ
from vita_audio.engines.gpu_fault import gpu_is_lost
from vita_audio.engines.interface import Floats, SpeechEncoderEngine, SpeechTokenizerEngine
from vita_audio.engines.recently_used import RecentlyUsed
from vita_audio.engines.registry import open_speech_encoder, open_speech_tokenizer
from vita_audio.sensevoice_features import speech_embeddings
from vita_audio.speech_features import FeatureBlocks, speech_tokens

#: Of features that are kept for speech that goes on: 20 minutes of 128 mel bands.
KEPT_FEATURES_BYTES = 64 * 2**20
#: Of embeddings that are kept for the next turn of a conversation, which brings its clips again: 18 minutes at 7B.
KEPT_EMBEDDINGS_BYTES = 256 * 2**20


class SpeechTokenizerStage:
    """The engine of this server, warmed up. Raises EngineError when it cannot be opened.

    Attributes:
        output: name of what it makes: CODES or EMBEDDINGS.
    """

    def __init__(self, heartbeats: Heartbeats) -> None:
        self.recorder, self._pulse = Recorder(), heartbeats.pulse("execute")
        self.refusals = Refusals(self.recorder, "speech_tokenizer")
        _, manifest, source = served_engines()
        self._read: Callable[[Floats], NDArray]
        if manifest.speech_input == SENSEVOICE:
            self.output, self._read = "EMBEDDINGS", _Embeddings(open_speech_encoder(source))
        else:
            self.output, self._read = "CODES", _Codes(open_speech_tokenizer(source))
        warm_up_speech(self._read)

    def read(self, speech: Floats) -> NDArray:
        """Mono speech [samples] -> codes, int32 [tokens], or embeddings, float32 [places, hidden size].

        Raises:
            InvalidRequest: too long, empty or not finite. `prompt` has checked that; other callers have not.
        """
        if not 0 < speech.size <= MAX_AUDIO_SECONDS * INPUT_SAMPLE_RATE_HZ + 1 or not np.isfinite(speech).all():
            limit = f"it must be finite and have 1 sample to {MAX_AUDIO_SECONDS:g} s at 16 kHz"
            raise InvalidRequest("AUDIO", f"{speech.size} samples", limit, "send it through the model vita_audio")
        try:
            with self._pulse.call():
                return self._read(speech)
        except Exception as error:
            if gpu_is_lost(error):
                self._pulse.broken()
            raise


class _Codes:
    """Codes of speech; the features of speech that goes on are made once."""

    def __init__(self, engine: SpeechTokenizerEngine) -> None:
        self._engine = engine
        self._made: FeatureBlocks = RecentlyUsed(KEPT_FEATURES_BYTES)

    def __call__(self, speech: Floats) -> NDArray[np.int32]:
        return speech_tokens(self._engine, speech, self._made).astype(np.int32)


class _Embeddings:
    """Embeddings of clips; those of a clip that comes again are found."""

    def __init__(self, engine: SpeechEncoderEngine) -> None:
        self._engine = engine
        self._made: RecentlyUsed[Floats] = RecentlyUsed(KEPT_EMBEDDINGS_BYTES)

    def __call__(self, speech: Floats) -> Floats:
        key = hashlib.sha256(speech.tobytes()).digest()
        if (found := self._made.get(key)) is not None:
            return found
        rows = np.array(speech_embeddings(self._engine, speech), np.float32)  # a view would keep the padding of a clip
        self._made.put(key, rows, rows.nbytes)
        return rows
