"""STATUS, and the typed messages between the models of one server.

    prompt ──Start──▶ speech_lm ──Delta, Probe──▶ audio_decoder, which calls speech_lm back with Released or Cancel

A message travels as two tensors: MESSAGE (STRING[1], JSON with its version and kind) and TOKENS (INT32[-1], its ids); a
Start has a third, EMBEDDINGS (FP32[-1, -1], speech of a Plus model). `decode` checks type and range of every field,
although only the models of this server can write one (`serving/seal.py`): a wrong one ends its stream and nothing else.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from vita_audio.contract.errors import BadMessage, InvalidRequest
from vita_audio.contract.fields import TASKS
from vita_audio.contract.modes import mode_of

VERSION = 1
MAX_TOKENS_OF_A_MESSAGE = 1 << 20
#: Of MESSAGE, in bytes or characters: the longest mode and reason fit, with every character escaped.
MAX_TEXT_OF_A_MESSAGE = 1 << 15
#: Characters of the reason of a failure; an engine may quote much.
MAX_REASON = 1000

State = Literal["running", "done", "cancelled", "failed"]
#: Keys of `timings_ms`, in the order of a stream. They and TASKS are labels of metrics: no message may make new ones.
STAGES = ("prompt", "speech_tokenizer", "lm_queue", "lm", "decode_queue", "decode")


@dataclass(frozen=True, slots=True)
class GenerationSettings:
    """A validated request, defaults resolved.

    `mode` is the canonical name or pattern text, `pattern` its (m, n) numbers flattened. `seed` is always set, so that
    a client can repeat the stream. `timings_ms` holds the stages already done, by stage name. With `read_only` (1)
    the prompt is read and nothing is generated.
    """

    task: str
    mode: str
    pattern: tuple[int, ...]
    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float
    seed: int
    timings_ms: dict[str, float] = field(default_factory=dict)
    read_only: int = 0
    history_clips: int = 0


@dataclass(frozen=True, slots=True)
class Status:
    """The STATUS of one response; in a Delta, how `speech_lm` sees the stream.

    `stream` is the server's own id, `index` counts responses from 0 (in a Delta: Deltas). `reason` says why the stream
    ended (`end_token`, `max_tokens`, `context_limit`, `read`, `cancelled`, or the text of a failure); `code` is for
    programs: that of the error when `state` is `failed`, `cancelled` when it is that. `timings_ms`: by stage, so far.
    `prompt_tokens`, of which `cached_tokens` were in the slot already (0 while the stream waits for one).
    `history_clips`: the next HISTORY needs so many of the last clips of speech in HISTORY_AUDIO.
    """

    stream: str
    index: int
    state: State
    reason: str = ""
    task: str = ""
    mode: str = ""
    seed: int = 0
    timings_ms: dict[str, float] = field(default_factory=dict)
    code: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    history_clips: int = 0

    @property
    def final(self) -> bool:
        return self.state != "running"

    def to_json(self) -> str:
        return _json(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Status:
        return cls(**json.loads(text))


def no_embeddings() -> NDArray[np.float32]:
    """Of a prompt without speech, or of a model that reads speech as tokens."""
    return np.zeros((0, 0), np.float32)


@dataclass(frozen=True, slots=True)
class Start:
    """A stream to be generated: its settings and the ids of its prompt.

    `embeddings`, float32 [n, hidden size]: what stands in the places of the n ids `context_of_audio`, in their order.
    """

    settings: GenerationSettings
    tokens: Sequence[int]
    embeddings: NDArray[np.float32] = field(default_factory=no_embeddings, compare=False)


@dataclass(frozen=True, slots=True)
class Delta:
    """New ids of a stream, in order; the last Delta of a stream has a final state, the first one has its prompt."""

    status: Status
    tokens: Sequence[int]
    prompt: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Probe:
    """Nothing is new, but is the client of this stream still there? Triton shows that in a new request only."""

    stream: str


@dataclass(frozen=True, slots=True)
class Cancel:
    """The rest of this stream is not wanted: its client is gone, or it cannot be decoded."""

    stream: str


@dataclass(frozen=True, slots=True)
class Released:
    """The decoder is done with this stream, which the language model has ended."""

    stream: str


@dataclass(frozen=True, slots=True)
class Ping:
    """Does the loop of this model still turn? The launcher asks, the answer is empty."""


Message = Start | Delta | Probe | Cancel | Released | Ping

_KINDS: dict[str, Any] = {kind.__name__.lower(): kind for kind in get_args(Message)}
_HEADERS: dict[type, tuple[str, Any]] = {
    Start: ("settings", GenerationSettings),
    Delta: ("status", Status),
}


def encode(message: Message) -> tuple[str, Sequence[int]]:
    """MESSAGE and TOKENS of a message; EMBEDDINGS of a Start are as it has them."""
    header = _HEADERS.get(type(message))
    values = asdict(getattr(message, header[0])) if header else asdict(message)
    tokens = getattr(message, "tokens", ())
    if isinstance(message, Delta):
        values["prompt_ids"] = len(message.prompt)
        tokens = [*message.prompt, *tokens] if len(message.prompt) else tokens
    return _json({"v": VERSION, "kind": type(message).__name__.lower(), **values}), tokens


def decode(text: str | bytes, tokens: Sequence[int] = (), embeddings: NDArray[np.float32] | None = None) -> Message:
    """The message that `encode` wrote, with its EMBEDDINGS.

    Raises:
        BadMessage: not JSON, another version, an unknown kind, or a field that is missing, unknown or out of range.
    """
    if len(text) > MAX_TEXT_OF_A_MESSAGE:
        raise _bad("MESSAGE", text[:60], f"it has {len(text)} bytes, and at most {MAX_TEXT_OF_A_MESSAGE} are read")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _bad("MESSAGE", text, f"it is not JSON ({error})") from error
    if not isinstance(values, dict):
        raise _bad("MESSAGE", text, "it is not a JSON object")
    version, kind = values.pop("v", None), values.pop("kind", None)
    if type(version) is not int or version != VERSION:
        raise _bad("v", version, f"this model reads version {VERSION}: run all models of a server from one revision")
    made = _KINDS.get(kind) if isinstance(kind, str) else None
    if made is None:
        raise _bad("kind", kind, f"it is one of {', '.join(_KINDS)}")
    header = _HEADERS.get(made)
    names = {entry.name for entry in fields(header[1] if header else made)} | (
        {"prompt_ids"} if made is Delta else set()
    )
    if names != values.keys():
        raise _bad("MESSAGE", sorted(values), f"a {kind} has the fields {', '.join(sorted(names))}")
    for name, value in values.items():
        holds, limit = _CHECKS[name]
        if not holds(value):
            raise _bad(name, value, limit)
    if header is None:
        return made(**values)
    if len(tokens) > MAX_TOKENS_OF_A_MESSAGE or min(tokens, default=0) < 0:
        raise _bad("TOKENS", f"{len(tokens)} ids", f"at most {MAX_TOKENS_OF_A_MESSAGE} ids, none below 0")
    if "pattern" in values:
        values["pattern"] = tuple(values["pattern"])
    if made is Delta:
        prompt_ids = values.pop("prompt_ids")
        if prompt_ids > len(tokens):
            raise _bad("prompt_ids", prompt_ids, f"TOKENS has {len(tokens)} ids")
        parts = (tokens[prompt_ids:], tokens[:prompt_ids]) if prompt_ids else (tokens,)
        return Delta(Status(**values), *parts)
    embeddings = no_embeddings() if embeddings is None else embeddings
    if embeddings.ndim != 2 or embeddings.dtype != np.float32 or len(embeddings) > len(tokens):
        shown = f"{embeddings.dtype} {list(embeddings.shape)}"
        raise _bad("EMBEDDINGS", shown, f"float32 [n, hidden size], at most a row for each of {len(tokens)} ids")
    return Start(GenerationSettings(**values), tokens, embeddings)


def _json(values: dict[str, Any]) -> str:
    return json.dumps(values, separators=(",", ":"))


def _bad(name: str, value: object, limit: str) -> BadMessage:
    shown = reprlib.repr(value)  # of bounded depth and length
    return BadMessage(f"{name}: {shown if len(shown) <= 60 else shown[:57] + '...'} is not valid: {limit}", field=name)


_Check = tuple[Callable[[Any], bool], str]


def _text(high: int, low: int = 0) -> _Check:
    return lambda value: isinstance(value, str) and low <= len(value) <= high, f"a text of {low} to {high} characters"


def _whole(high: int, low: int = 0) -> _Check:
    return lambda value: type(value) is int and low <= value <= high, f"a whole number from {low} to {high}"


def _number(high: float, low: float = 0.0) -> _Check:  # false for NaN
    return lambda value: type(value) in (int, float) and low <= value <= high, f"a number from {low:g} to {high:g}"


def _is_pattern(value: Any) -> bool:
    try:
        return isinstance(value, list) and all(type(number) is int for number in value) and bool(mode_of(value))
    except InvalidRequest:
        return False


def _are_timings(value: Any) -> bool:
    known = isinstance(value, dict) and value.keys() <= set(STAGES)
    return known and all(_CHECKS["timing"][0](took) for took in value.values())


#: What a field of any message may hold. The limits of requests are in `fields.py` and checked before: these keep a
#: foreign message from doing harm.
_CHECKS: dict[str, _Check] = {
    "stream": _text(64, low=1),
    "index": _whole(2**31 - 1),
    "state": (lambda value: value in get_args(State), f"one of {', '.join(get_args(State))}"),
    "reason": _text(MAX_REASON),
    "code": _text(64),
    "task": (lambda value: value in ("", *TASKS), f"one of {', '.join(TASKS)}, or empty"),
    "mode": _text(1024),
    "seed": _whole(2**64 - 1),
    "timings_ms": (_are_timings, f"from 0 to 1e9 ms for any of {', '.join(STAGES)}"),
    "timing": _number(1e9),
    "pattern": (_is_pattern, "pairs m,n of a decoding mode"),
    "max_tokens": _whole(MAX_TOKENS_OF_A_MESSAGE, low=1),
    "temperature": _number(1e3),
    "top_k": _whole(2**31 - 1),
    "top_p": _number(1.0, low=5e-324),
    "repetition_penalty": _number(1e3, low=5e-324),
    "read_only": _whole(1),
    "history_clips": _whole(MAX_TOKENS_OF_A_MESSAGE),
    "prompt_tokens": _whole(MAX_TOKENS_OF_A_MESSAGE),
    "cached_tokens": _whole(MAX_TOKENS_OF_A_MESSAGE),
    "prompt_ids": _whole(MAX_TOKENS_OF_A_MESSAGE),
}
