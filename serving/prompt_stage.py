"""The stage `prompt`: checked inputs, speech tokens when there is speech, and the Start of the stream."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.admission import AdmissionRecord
from serving.heartbeat import Heartbeats
from serving.metrics.recorder import Recorder
from serving.metrics.refusals import Refusals
from serving.settings import ServingSettings
from vita_audio.checkpoint.configs import SENSEVOICE
from vita_audio.contract.errors import InvalidRequest, ServerStopping
from vita_audio.contract.limits import Limits
from vita_audio.contract.messages import Start, no_embeddings
from vita_audio.contract.rates import INPUT_SAMPLE_RATE_HZ
from vita_audio.contract.request import SpeechRequest, check_prompt, parse_request
from vita_audio.engines.interface import Floats
from vita_audio.engines.manifest import load_manifest
from vita_audio.pulse import Pulse
from vita_audio.sensevoice_features import WINDOW, slot_count
from vita_audio.speech_features import final_tokens, to_16_khz
from vita_audio.speech_pauses import is_silent, shorten_pauses
from vita_audio.text.chat_template import ChatTemplate, ContinuousSpeech, PromptBuilder, Speech
from vita_audio.text.history import HistoryReader, PastTurn
from vita_audio.text.normalization import WORDS, in_words
from vita_audio.text.plain import has_words, plain
from vita_audio.text.tokenizer import TextTokenizer

#: Of a client's own id of a request. Triton repeats it in its errors and traces.
MAX_REQUEST_ID = 128
#: Of the context, kept free for an answer where turns are dropped.
ANSWER_SHARE = 0.25


class PromptStage:
    """Turns the public inputs of one request into a prompt; used by one thread.

    Args:
        tokenizer: text to ids.
        limits: what the engines can serve.
        read_speech: mono speech [samples] at 16 kHz -> audio codes [n], or of a Plus checkpoint (whose vocabulary has
            a place for them) embeddings float32 [`slot_count`, hidden size].
        admission: asked first, so that no speech is tokenized for a request that is refused anyway.
        worker: this model instance, for metrics.
        pulse: of the one thread.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        limits: Limits,
        read_speech: Callable[[Floats], Any],
        admission: AdmissionRecord | None = None,
        worker: str = "",
        pulse: Pulse | None = None,
    ) -> None:
        self._builder, self._limits, self._read_speech = PromptBuilder(tokenizer), limits, read_speech
        self._plus = tokenizer.vocabulary.context_of_audio is not None
        self._reader = HistoryReader(ChatTemplate(tokenizer), tokenizer.vocabulary)
        self._admission, self._worker = admission or AdmissionRecord(None), worker
        self._running, self._pulse = 0, pulse or Pulse()
        self.recorder = Recorder()
        self.refusals = Refusals(self.recorder, "prompt")

    @classmethod
    def serve(cls, worker: str, ask: Callable[..., Any], heartbeats: Heartbeats) -> PromptStage:
        """The stage of this server, warmed up. `ask`: the model `speech_tokenizer` (`ModelCalls.ask_speech_tokenizer`).

        Raises:
            EngineError: the engines have no manifest.
        """
        settings = ServingSettings.from_environment()
        tokenizer, manifest = TextTokenizer(settings.engines / "tokenizer.json"), load_manifest(settings.engines)
        read_speech = partial(ask, output="EMBEDDINGS") if manifest.speech_input == SENSEVOICE else ask
        admission, pulse = AdmissionRecord(settings.admission), heartbeats.pulse("execute")
        cls(tokenizer, manifest.limits, read_speech).prepare({"TEXT": "warm-up 1"})
        return cls(tokenizer, manifest.limits, read_speech, admission, worker, pulse)

    def prepare(self, inputs: Mapping[str, Any], request_id: str = "") -> Start:
        """Check `inputs` (public name -> array, or None when not sent) and build the prompt.

        `timings_ms` of the settings gets `speech_tokenizer` (when there is speech, with resampling and its hop) and
        `prompt` (everything else).

        Raises:
            InvalidRequest: naming the first field that is wrong.
            ServerStopping: the server drains.
            ServerFull: the request has speech, and the server is full.
        """
        self._running += 1
        try:
            if len(request_id) > MAX_REQUEST_ID or not request_id.isprintable():
                limit = f"it has at most {MAX_REQUEST_ID} characters, all of them printable"
                raise InvalidRequest("request id", request_id, limit, "send a shorter one, or none")
            with self._pulse.call():
                return self._prepare(inputs)
        finally:
            self._running -= 1

    def measure(self) -> None:
        """Bring the gauge up to date."""
        self.recorder.set("vita_streams", self._running, stage="prompt", state="running", worker=self._worker)

    def _prepare(self, inputs: Mapping[str, Any]) -> Start:
        if self._admission.draining:
            raise ServerStopping
        start = time.perf_counter()
        request = parse_request(inputs, self._limits)
        text = None if request.text is None else self._words(request.text, one_line=request.task == "tts")
        if text is not None and not has_words(text):
            raise InvalidRequest("TEXT", request.text, "it has no letter and no digit", "send words, or leave TEXT out")
        request = replace(request, text=text)
        if request.history_clips and not self._plus:
            limit = "this checkpoint reads speech as tokens, and HISTORY has them"
            raise InvalidRequest("HISTORY_AUDIO", f"{len(request.history_clips)} clips", limit, "leave it out")
        if request.audio is not None or request.history_clips:
            self._admission.check()
        timings, rows = dict[str, float](), no_embeddings()
        if self._plus:
            ids, clips = self._prompt_with_places(request)
            if clips:
                begin = time.perf_counter()
                rows = np.concatenate([self._read_speech(clip) for clip in clips])
                timings["speech_tokenizer"] = (time.perf_counter() - begin) * 1e3
            request = replace(request, settings=replace(request.settings, history_clips=len(clips)))
        else:
            codes = None
            if request.audio is not None:
                begin = time.perf_counter()
                codes = [int(code) for code in self._read_speech(self._speech(request.audio, request.sample_rate_hz))]
                timings["speech_tokenizer"] = (time.perf_counter() - begin) * 1e3
            ids, _ = self._prompt(request, codes, codes and codes[: final_tokens(len(codes))])
        timings["prompt"] = (time.perf_counter() - start) * 1e3 - timings.get("speech_tokenizer", 0.0)
        return Start(replace(request.settings, timings_ms=timings), ids, rows)

    def _words(self, text: str, one_line: bool = False) -> str:
        """A text as this checkpoint was trained on it."""
        text = plain(text, one_line)
        return in_words(text) if self._limits.text_normalization == WORDS else text

    def _speech(self, samples: NDArray[np.float32], rate_hz: int, field: str = "AUDIO") -> Floats:
        """A clip at 16 kHz, without what is too long of its pauses."""
        if is_silent(samples):
            limit = "no sample is above -60 dB of full scale"
            raise InvalidRequest(field, f"{samples.size / rate_hz:.2f} s of silence", limit, "is the microphone muted?")
        speech = shorten_pauses(to_16_khz(samples, rate_hz))
        if self._plus and len(speech) < WINDOW:
            shown = f"{samples.size} samples at {rate_hz} Hz ({samples.size / rate_hz:.3f} s)"
            limit = f"this checkpoint (Plus) needs at least {WINDOW / INPUT_SAMPLE_RATE_HZ:g} s"
            raise InvalidRequest(field, shown, limit, "send more speech")
        return speech

    def _prompt_with_places(self, request: SpeechRequest) -> tuple[list[int], list[Floats]]:
        """The ids of a prompt of a Plus checkpoint, and the clips whose embeddings stand in it, in their order.

        Of a turn that goes on there is what comes before its clip: every embedding of a clip changes with its end.
        """
        clip = None if request.audio is None else self._speech(request.audio, request.sample_rate_hz)
        places = None if clip is None else ContinuousSpeech(slot_count(len(clip)))
        ids, turns = self._prompt(request, places, clip if clip is None else ContinuousSpeech(0))
        rows = [turn.clip_rows for turn in turns if turn.clip_rows]
        first = len(request.history_clips) - len(rows)
        clips = [
            self._speech(earlier, request.sample_rate_hz, "HISTORY_AUDIO") for earlier in request.history_clips[first:]
        ]
        for number, (earlier, due) in enumerate(zip(clips, rows, strict=True), start=first + 1):
            if slot_count(len(earlier)) != due:
                shown, limit = f"clip {number} of {slot_count(len(earlier))} places", f"HISTORY has {due} for it"
                raise InvalidRequest("HISTORY_AUDIO", shown, limit, "send the clips as they were sent, in their order")
        return ids, clips if clip is None or request.settings.read_only else [*clips, clip]

    def _prompt(
        self, request: SpeechRequest, speech: Speech | None, so_far: Speech | None
    ) -> tuple[list[int], list[PastTurn]]:
        """The ids of all turns, up to the answer, and the turns before this one.

        Args:
            so_far: what stays as it is of speech that goes on; the ids of such a turn end with it.
        """
        build = self._builder.build
        write, there = (self._builder.begin, so_far) if request.settings.read_only else (build, speech)
        field = "TEXT" if speech is None else "AUDIO"
        history = request.history.tolist()
        if request.messages:
            said = ((role, self._words(content)) for role, content in request.messages)
            history = self._builder.past(request.task, said, request.system)
        if not history:
            ids = write(request.task, request.text, there, request.system)
            check_prompt(ids, self._limits, field)
            return ids, []
        turns = self._reader.read(history, request.heard)
        self._check_clips(request, turns)
        turn = build(request.task, request.text, speech, past=turns[-1].ids)[len(turns[-1].ids) :]
        check_prompt(turn, self._limits, field)
        if request.drop_turns:
            turns = self._reader.shorten(turns, self._room(len(turn), request.settings.max_tokens))
        past = [token for one in turns for token in one.ids]
        ids = write(request.task, request.text, there, request.system if turns else None, past)
        check_prompt(ids, self._limits, "MESSAGES" if request.messages else "HISTORY")
        return ids, turns

    def _check_clips(self, request: SpeechRequest, turns: Sequence[PastTurn]) -> None:
        """As many clips came as the turns have, of a Plus checkpoint; the other kind refuses them before."""
        due, came = sum(turn.clip_rows > 0 for turn in turns), len(request.history_clips)
        if due != came:
            limit = f"HISTORY has {due} turns with speech"
            remedy = f"send the last {due} clips, as they were sent" if due else "leave it out"
            raise InvalidRequest("HISTORY_AUDIO", f"{came} clips", limit, remedy)

    def _room(self, turn_tokens: int, max_tokens: int) -> int:
        """Tokens that a history may have, so that the answer has room: at most a quarter of the context is kept."""
        context = self._limits.context_tokens
        return context - turn_tokens - min(max_tokens, int(context * ANSWER_SHARE))
