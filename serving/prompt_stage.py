"""The stage `prompt`: checked inputs, speech tokens when there is speech, and the Start of the stream."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from serving.admission import AdmissionRecord
from serving.heartbeat import Heartbeats
from serving.metrics.recorder import Recorder
from serving.metrics.refusals import Refusals
from serving.settings import ServingSettings
from vita_audio.contract.errors import InvalidRequest, ServerStopping
from vita_audio.contract.limits import Limits
from vita_audio.contract.messages import Start
from vita_audio.contract.request import SpeechRequest, check_prompt, parse_request
from vita_audio.engines.interface import Floats
from vita_audio.engines.manifest import load_manifest
from vita_audio.pulse import Pulse
from vita_audio.speech_features import final_tokens, to_16_khz
from vita_audio.speech_pauses import is_silent, shorten_pauses
from vita_audio.text.chat_template import ChatTemplate, PromptBuilder
from vita_audio.text.history import HistoryReader
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
        speech_codes: mono speech [samples] at 16 kHz -> audio codes.
        admission: asked first, so that no speech is tokenized for a request that is refused anyway.
        worker: this model instance, for metrics.
        pulse: of the one thread.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        limits: Limits,
        speech_codes: Callable[[Floats], Sequence[int]],
        admission: AdmissionRecord | None = None,
        worker: str = "",
        pulse: Pulse | None = None,
    ) -> None:
        self._builder, self._limits, self._speech_codes = PromptBuilder(tokenizer), limits, speech_codes
        self._reader = HistoryReader(ChatTemplate(tokenizer), tokenizer.vocabulary)
        self._admission, self._worker = admission or AdmissionRecord(None), worker
        self._running, self._pulse = 0, pulse or Pulse()
        self.recorder = Recorder()
        self.refusals = Refusals(self.recorder, "prompt")

    @classmethod
    def serve(cls, worker: str, speech_codes: Callable[[Floats], Sequence[int]], heartbeats: Heartbeats) -> PromptStage:
        """The stage of this server, warmed up.

        Raises:
            EngineError: the engines have no manifest.
        """
        settings = ServingSettings.from_environment()
        tokenizer, limits = TextTokenizer(settings.engines / "tokenizer.json"), load_manifest(settings.engines).limits
        cls(tokenizer, limits, speech_codes).prepare({"TEXT": "warm-up 1"})
        return cls(
            tokenizer, limits, speech_codes, AdmissionRecord(settings.admission), worker, heartbeats.pulse("execute")
        )

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
        timings, codes = {}, None
        if request.audio is not None:
            self._admission.check()
            begin = time.perf_counter()
            codes = [int(code) for code in self._speech_codes(self._speech(request))]
            timings["speech_tokenizer"] = (time.perf_counter() - begin) * 1e3
        ids = self._prompt(request, codes)
        timings["prompt"] = (time.perf_counter() - start) * 1e3 - timings.get("speech_tokenizer", 0.0)
        return Start(replace(request.settings, timings_ms=timings), ids)

    def _words(self, text: str, one_line: bool = False) -> str:
        """A text as this checkpoint was trained on it."""
        text = plain(text, one_line)
        return in_words(text) if self._limits.text_normalization == WORDS else text

    def _speech(self, request: SpeechRequest) -> Floats:
        """The speech of a request at 16 kHz, without what is too long of its pauses."""
        assert request.audio is not None
        if is_silent(request.audio):
            seconds = request.audio.size / request.sample_rate_hz
            limit = "no sample is above -60 dB of full scale"
            raise InvalidRequest("AUDIO", f"{seconds:.2f} s of silence", limit, "is the microphone muted?")
        return shorten_pauses(to_16_khz(request.audio, request.sample_rate_hz))

    def _prompt(self, request: SpeechRequest, codes: list[int] | None) -> list[int]:
        """The ids of all turns, up to the answer; of a turn that goes on, up to what is there of it."""
        write = self._builder.begin if request.settings.read_only else self._builder.build
        if codes is not None and request.settings.read_only:
            codes = codes[: final_tokens(len(codes))]
        history = request.history.tolist()
        if request.messages:
            said = ((role, self._words(content)) for role, content in request.messages)
            history = self._builder.past(request.task, said, request.system)
        if not history:
            ids = write(request.task, request.text, codes, request.system)
            check_prompt(ids, self._limits, "TEXT" if codes is None else "AUDIO")
            return ids
        turns = self._reader.read(history, request.heard)
        turn = self._builder.build(request.task, request.text, codes, past=turns[-1].ids)[len(turns[-1].ids) :]
        check_prompt(turn, self._limits, "TEXT" if codes is None else "AUDIO")
        if request.drop_turns:
            turns = self._reader.shorten(turns, self._room(len(turn), request.settings.max_tokens))
        past = [token for one in turns for token in one.ids]
        ids = write(request.task, request.text, codes, request.system if turns else None, past)
        check_prompt(ids, self._limits, "MESSAGES" if request.messages else "HISTORY")
        return ids

    def _room(self, turn_tokens: int, max_tokens: int) -> int:
        """Tokens that a history may have, so that the answer has room: at most a quarter of the context is kept."""
        context = self._limits.context_tokens
        return context - turn_tokens - min(max_tokens, int(context * ANSWER_SHARE))
