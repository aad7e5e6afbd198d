"""The public contract of the `vita_audio` ensemble: one row for each request field and each output.

Server, client, command line, README and the models' config.pbtxt read these rows or are checked against them
(docs/contract.md).
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from vita_audio.contract.limits import (
    MAX_AUDIO_SECONDS,
    MAX_HISTORY_AUDIO_SECONDS,
    MAX_HISTORY_TOKENS,
    MAX_REPETITION_PENALTY,
    MAX_SAMPLE_RATE_HZ,
    MIN_AUDIO_SECONDS,
    MIN_REPETITION_PENALTY,
    MIN_SAMPLE_RATE_HZ,
    Limits,
)
from vita_audio.contract.modes import MODE_WORDS
from vita_audio.contract.past_messages import MAX_MESSAGES
from vita_audio.contract.rates import INPUT_SAMPLE_RATE_HZ

ENSEMBLE = "vita_audio"
TASKS = ("chat", "tts", "asr", "text")
DEFAULT_TASK = "chat"
#: The authors' sampling of speech synthesis; the other tasks are greedy (docs/model.md, "Sampling defaults").
TTS_TEMPERATURE, TTS_TOP_K = 1.0, 50

_NUMPY_TYPES = {"FP32": "<f4", "INT32": "<i4", "INT16": "<i2", "UINT64": "<u8", "STRING": "O"}


class Output(NamedTuple):
    """Name, Triton datatype, shape (-1 = any length) and meaning of one output; whether it is for conversations."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    help: str
    of_conversations: bool = False

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(_NUMPY_TYPES[self.datatype])


@dataclass(frozen=True, slots=True)
class Field:
    """One input. Every field may be left out, but for those that a task needs.

    Attributes:
        name: of the tensor; in lower case it is the keyword of the Python client and the option of the command line.
        datatype, shape: Triton's; -1 is any length.
        help: what it is, one line. `note`: what to send instead of a wrong value, or how to switch it off.
        low, high: bounds, in `unit`; `low_excluded`: the lower one is not allowed itself.
        engine_high: a lower upper bound that the engines set.
        choices: the allowed strings.
        range_words: the range for people, where the numbers do not say it.
        tasks: those that take it. `needed_by`: those that cannot do without.
        default: a value, or a function of task and engines. `default_words`: the same for people.
        of_conversations: means something only among several turns (docs/conversations.md has it, not README.md).
    """

    name: str
    datatype: str
    help: str
    note: str = ""
    shape: tuple[int, ...] = (1,)
    low: float | None = None
    high: float | None = None
    low_excluded: bool = False
    engine_high: Callable[[Limits], float] | None = None
    choices: tuple[str, ...] = ()
    range_words: str = ""
    unit: str = ""
    tasks: tuple[str, ...] = TASKS
    needed_by: tuple[str, ...] = ()
    default: Any = None
    default_words: str = ""
    of_conversations: bool = False

    @property
    def keyword(self) -> str:
        return self.name.lower()

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(_NUMPY_TYPES[self.datatype])

    @property
    def python_type(self) -> type:
        """Of one value: str, float or int."""
        return {"STRING": str, "FP32": float}.get(self.datatype, int)

    def default_for(self, task: str, limits: Limits) -> Any:
        """The value of a request that does not send this field."""
        return self.default(task, limits) if callable(self.default) else self.default

    def upper(self, limits: Limits | None) -> float | None:
        """The upper bound, with what these engines can serve."""
        if limits is None or self.engine_high is None:
            return self.high
        return self.engine_high(limits)

    def allowed(self, limits: Limits | None = None) -> str:
        """The range in words: "from 0 to 10 s", "more than 0 and at most 1", "one of chat, tts"; empty for any."""
        high = self.upper(limits)
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        if self.low is None or high is None:
            return ""
        unit = f" {self.unit}" if self.unit else ""
        least, most = (str(int(bound)) if bound == int(bound) else f"{bound:g}" for bound in (self.low, high))
        return f"more than {least} and at most {most}{unit}" if self.low_excluded else f"from {least} to {most}{unit}"

    def default_text(self) -> str:
        return self.default_words or ("" if self.default is None else str(self.default))

    def range_text(self) -> str:
        """The range for people, short."""
        words = self.allowed().removeprefix("from ").removeprefix("one of ").replace("more than", "above")
        return self.range_words or words.replace(" and", ",")

    def task_text(self) -> str:
        """Which tasks need it and which refuse it; empty for a field that all may have."""
        needed, refused = self.needed_by, [task for task in TASKS if task not in self.tasks]
        parts = (needed and f"needed by {', '.join(needed)}", refused and f"not for {', '.join(refused)}")
        return "; ".join(part for part in parts if part)

    def described(self) -> str:
        """Help of one line: what it is, range and default."""
        default = f"default: {self.default_text()}" if self.default_text() else ""
        return "; ".join(part for part in (self.help, self.range_text(), self.note, default) if part)


def _of_tts(sampled: float, greedy: float) -> Callable[[str, Limits], float]:
    return lambda task, limits: sampled if task == "tts" and limits.tts_samples else greedy


# fmt: off
INPUTS = (
    Field("TEXT", "STRING", "what to say or to answer", tasks=("chat", "tts", "text"), needed_by=("tts", "text")),
    Field("AUDIO", "FP32", "speech, mono, in [-1, 1]", shape=(-1,), tasks=("chat", "asr"), needed_by=("asr",),
          range_words=f"{MIN_AUDIO_SECONDS:g} to {MAX_AUDIO_SECONDS:g} s"),
    Field("SAMPLE_RATE", "INT32", "rate of AUDIO", low=MIN_SAMPLE_RATE_HZ, high=MAX_SAMPLE_RATE_HZ, unit="Hz",
          default=INPUT_SAMPLE_RATE_HZ),
    Field("TASK", "STRING", "what to do", choices=TASKS, default=DEFAULT_TASK),
    Field("MODE", "STRING", "backbone and MCTP tokens in turn", range_words=MODE_WORDS,
          default=lambda task, limits: limits.default_mode(task).name,
          default_words="the checkpoint's; text: vanilla"),
    Field("MAX_TOKENS", "INT32", "most tokens of the answer", low=1, high=2**31 - 1, unit="tokens",
          engine_high=lambda limits: limits.max_tokens, range_words="1 to the engines' limit",
          default=lambda task, limits: limits.default_max_tokens, default_words="1024"),
    Field("TEMPERATURE", "FP32", "randomness", "0 is greedy", low=0, high=10,
          default=_of_tts(TTS_TEMPERATURE, 0.0), default_words=f"0; tts: {TTS_TEMPERATURE:g}, or 0 by the checkpoint"),
    Field("TOP_K", "INT32", "draw from the k likeliest", "0 is off", low=0, high=1_000_000,
          default=_of_tts(TTS_TOP_K, 0), default_words=f"0; tts: {TTS_TOP_K}, or 0 by the checkpoint"),
    Field("TOP_P", "FP32", "draw from this share", "1 is off", low=0, low_excluded=True, high=1, default=1.0),
    Field("REPETITION_PENALTY", "FP32", "for tokens seen before", "1 is off", low=MIN_REPETITION_PENALTY,
          high=MAX_REPETITION_PENALTY,
          default=lambda task, limits: limits.repetition_penalty, default_words="the checkpoint's"),
    # A drawn seed is reported in every STATUS; 32 bits are short enough to type again.
    Field("SEED", "UINT64", "equal seeds, equal answers", low=0, high=2**64 - 1, range_words="any",
          default=lambda task, limits: secrets.randbits(32), default_words="drawn"),
    Field("SYSTEM", "STRING", "who answers, and how", tasks=("chat", "text"), default_words="chat: the checkpoint's",
          of_conversations=True),
    Field("HISTORY", "INT32", "the turns so far: PROMPT and TOKENS of the last answer, joined", shape=(-1,),
          range_words=f"at most {MAX_HISTORY_TOKENS} ids", tasks=("chat", "text"), of_conversations=True),
    Field("HISTORY_AUDIO", "FP32", "the speech in HISTORY, clip after clip, as it was sent, at SAMPLE_RATE",
          "as many of the last clips as STATUS.history_clips says", shape=(-1,),
          range_words=f"at most {MAX_HISTORY_AUDIO_SECONDS:g} s", tasks=("chat", "text"), of_conversations=True),
    Field("HISTORY_AUDIO_SAMPLES", "INT32", "samples of each clip in HISTORY_AUDIO", shape=(-1,),
          range_words="as AUDIO", tasks=("chat", "text"), of_conversations=True),
    Field("MESSAGES", "STRING", "the turns so far in words, in place of HISTORY",
          "JSON, [{role, content}]; user and assistant take turns", range_words=f"at most {MAX_MESSAGES} messages",
          tasks=("chat", "text"), of_conversations=True),
    Field("HEARD", "INT32", "audio tokens of the last answer that were heard; the rest of it is cut off", low=0,
          high=2**31 - 1, tasks=("chat", "text"), default_words="all", of_conversations=True),
    Field("HISTORY_OVERFLOW", "STRING", "a history that is too long: refused, or its oldest turns are dropped",
          choices=("error", "drop"), default="error", tasks=("chat", "text"), of_conversations=True),
    Field("READ_ONLY", "INT32", "1: the turn goes on; read what is there of it, answer nothing", low=0, high=1,
          default=0, tasks=("chat", "text"), of_conversations=True),
)
# fmt: on
#: The text output cannot be called TEXT: an ensemble names its tensors in one space, so an output of the name of an
#: input would feed the first step again (Triton refuses to load it).
OUTPUTS = (
    Output("TEXT_DELTA", "STRING", (1,), "next text, whole characters"),
    Output("TOKENS", "INT32", (-1,), "ids of these tokens"),
    Output("PCM", "INT16", (-1,), "next sound, mono, 22 050 Hz"),
    Output("STATUS", "STRING", (1,), "JSON: state, reason, code, seed, ms per stage"),
    Output("PROMPT", "INT32", (-1,), "in the first response: ids of all turns and of this one, up to the answer", True),
)

#: What a caller of the client may give for AUDIO: a path, an open binary file, or samples.
AudioSource = str | os.PathLike[str] | BinaryIO | NDArray[np.generic]


class RequestFields(TypedDict, total=False):
    """`INPUTS` (but TEXT) as keyword arguments, for type checkers; None is "not sent"."""

    audio: AudioSource | None
    sample_rate: int | None
    task: str | None
    mode: str | None
    max_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    repetition_penalty: float | None
    seed: int | None
    system: str | None
    history: Sequence[int] | NDArray[np.integer] | None
    history_audio: NDArray[np.float32] | None
    history_audio_samples: Sequence[int] | NDArray[np.integer] | None
    messages: str | None
    heard: int | None
    history_overflow: str | None
    read_only: int | None
