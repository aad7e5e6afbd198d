"""The first stage of a request: checked inputs, speech tokens when there is speech, prompt ids and settings."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vita_audio.contract.limits import Limits
from vita_audio.contract.messages import GenerationSettings
from vita_audio.contract.request import check_prompt, parse_request
from vita_audio.engines.interface import Floats
from vita_audio.speech_features import to_16_khz
from vita_audio.text.chat_template import PromptBuilder
from vita_audio.text.tokenizer import TextTokenizer


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the language model gets."""

    ids: list[int]
    settings: GenerationSettings


class PromptStage:
    """Turns the public inputs of one request into a prompt.

    Args:
        tokenizer: text to ids.
        limits: what the engines can serve.
        speech_codes: mono speech [samples] at 16 kHz -> audio codes.
    """

    def __init__(
        self, tokenizer: TextTokenizer, limits: Limits, speech_codes: Callable[[Floats], Sequence[int]]
    ) -> None:
        self._builder, self._limits, self._speech_codes = PromptBuilder(tokenizer), limits, speech_codes

    def prepare(self, inputs: Mapping[str, Any]) -> Prompt:
        """Check `inputs` (public name -> array, or None when not sent) and build the prompt.

        `timings_ms` of the settings gets `speech_tokenizer` (when there is speech, with resampling and its hop) and
        `prompt` (everything else).

        Raises:
            InvalidRequest: naming the first field that is wrong.
        """
        start = time.perf_counter()
        request = parse_request(inputs, self._limits)
        timings, codes = {}, None
        if request.audio is not None:
            begin = time.perf_counter()
            codes = [int(code) for code in self._speech_codes(to_16_khz(request.audio, request.sample_rate_hz))]
            timings["speech_tokenizer"] = (time.perf_counter() - begin) * 1e3
        ids = self._builder.build(request.task, request.text, codes)
        check_prompt(ids, self._limits, "TEXT" if codes is None else "AUDIO")
        timings["prompt"] = (time.perf_counter() - start) * 1e3 - timings.get("speech_tokenizer", 0.0)
        return Prompt(ids, replace(request.settings, timings_ms=timings))
