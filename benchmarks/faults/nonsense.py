"""Random requests that no client should send: to the public model, and to those behind it, which take none at all."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import Any, TypeAlias

import numpy as np
from tritonclient.grpc import service_pb2

from vita_audio.contract.fields import ENSEMBLE, INPUTS, Field
from vita_audio.contract.messages import Cancel, Delta, Probe, Released, Start, Status, encode
from vita_audio.contract.messages import GenerationSettings as Settings

_TYPES = ("BYTES", "INT32", "FP32", "UINT64", "INT64", "FP16", "BOOL", "INT8", "FP64", "", "NONE")
_SHAPES: tuple[Sequence[int], ...] = ((), (0,), (1,), (2,), (-1,), (1, 1), (3, 2), (2**31,), (2**62, 4), (0, 0))
_TEXTS: tuple[bytes, ...] = (
    b"", b" \n\t", b"Hello there.", b"\xff\xfe\x00", b"\x00", "\u202e\ufeff\ud7ff".encode(), b'"} 9\nvita_slots 1e9',
    b"word " * 5_000, b"%s%n{0}$(reboot)", b"<script>", b"[vita:server_full] no", b"A" * 70_000, "🙂".encode() * 300,
)  # fmt: skip
_NUMBERS = (0, 1, -1, 2, 7, 30, 8_000, 16_000, 2**31 - 1, -(2**31), 2**32, 2**63, 2**64 - 1, 0.5, -0.0, 1e-45, 1e38)
#: A request that happens to be right is short.
_FEW_TOKENS = 20
_KINDS: dict[str, type] = {"INT32": np.int32, "FP32": np.float32, "UINT64": np.uint64}

Message: TypeAlias = service_pb2.ModelInferRequest
#: A value of each field of the messages between models; one of them is replaced by nonsense.
_ODD_JSON: tuple[Any, ...] = (
    None, True, -1, 0, 2**70, 1e308, math.nan, math.inf, "", "x", "\x00\n", "y" * 20_000, [], [0, 0], ["x"], {},
    {"a": "b"}, [[[[]]]],
)  # fmt: skip


def public_message(random: Random) -> Message:
    """A request to the public model: some fields, of which few are as they should be."""
    fields = random.sample(INPUTS, random.randint(0, 4))
    message = Message(model_name=ENSEMBLE, id=_id(random))
    message.parameters["triton_enable_empty_final_response"].bool_param = True
    for each in fields:
        _add(message, each.name, *_input(random, each))
    if not any(each.name == "TEXT" for each in fields) and random.random() < 0.6:
        _add(message, "TEXT", "BYTES", (1,), _string(b"Hello there."))
    if not any(each.name == "MAX_TOKENS" for each in fields):
        _add(message, "MAX_TOKENS", "INT32", (1,), np.int32(_FEW_TOKENS).tobytes())
    for odd in _ODDITIES:
        if random.random() < 0.03:
            odd(random, message)
    return message


def inner_message(random: Random) -> Message:
    """A message to a model behind the public one: well formed or not, unsealed or sealed by a forger."""
    model = random.choice(("speech_lm", "audio_decoder", "speech_tokenizer"))
    message = Message(model_name=model, id=_id(random))
    message.parameters["triton_enable_empty_final_response"].bool_param = True
    seal = bytes(random.choices(b"0123456789abcdef", k=64)) if random.random() < 0.5 else b""
    if model == "speech_tokenizer":
        _add(message, "AUDIO", "FP32", (800,), np.full(800, 0.1, np.float32).tobytes())
        _add(message, "SEAL", "BYTES", (1,), _string(seal or random.choice(_TEXTS)))
        return message
    text, tokens = _typed(random)
    if random.random() < 0.2:
        text = random.choice((*_TEXTS, b"[" * 50_000, b"{}"))
    ids = np.asarray([*tokens][:2_000] if random.random() < 0.8 else [-5, 2**31 - 1], np.int32)
    _add(message, "MESSAGE", "BYTES", (1,), _string(seal + text))
    _add(message, "TOKENS", "INT32", (len(ids),), ids.tobytes())
    return message


def _typed(random: Random) -> tuple[bytes, Sequence[int]]:
    """A message between models, with one value of it replaced, or none."""
    stream = random.choice(("x1", "s1-0000", "", "s" * 5_000))
    settings = Settings("tts", "vanilla", (8192, 0), _FEW_TOKENS, 0.0, 0, 1.0, 1.0, 1)
    text, tokens = encode(
        random.choice(
            (
                Start(settings, range(30)), Delta(Status(stream, 0, "running", task="tts", seed=1), range(900, 960)),
                Delta(Status(stream, 1, "done", "end_token", "tts"), ()), Probe(stream), Cancel(stream),
                Released(stream),
            )
        )
    )  # fmt: skip
    if random.random() < 0.7:
        values = json.loads(text)
        values[random.choice([*values, "new"])] = random.choice(_ODD_JSON)
        text = json.dumps(values)
    return text.encode("utf-8", "surrogatepass"), tokens


def _input(random: Random, field: Field) -> tuple[str, Sequence[int], bytes]:
    """Datatype, shape and bytes: one case in five is wrong in one of them, others have values that few would send."""
    if field.datatype == "STRING":
        known = [choice.encode() for choice in field.choices]
        raw, datatype = _string(random.choice(known if known and random.random() < 0.5 else _TEXTS)), "BYTES"
        shape: Sequence[int] = (1,)
    elif field.shape == (-1,):
        samples = np.full(random.choice((0, 1, 800, 16_000)), 0.1, np.float32)
        if samples.size and random.random() < 0.5:
            samples[random.randrange(samples.size)] = random.choice((math.nan, math.inf, 2.0, -1e30, 1e-40))
        raw, datatype, shape = samples.tobytes(), "FP32", (samples.size,)
    else:
        kind = _KINDS[field.datatype]
        number = np.array(min(_FEW_TOKENS, 2) if random.random() < 0.3 else random.choice(_NUMBERS))
        with np.errstate(all="ignore"):
            raw = number.astype(kind).tobytes()
        datatype, shape = field.datatype, (1,)
        if field.name == "MAX_TOKENS" and 0 < int.from_bytes(raw, "little", signed=True) > _FEW_TOKENS:
            raw = np.int32(_FEW_TOKENS).tobytes()
    what = random.randrange(15)
    if what == 0:
        datatype = random.choice(_TYPES)
    elif what == 1:
        shape = random.choice(_SHAPES)
    elif what == 2:
        raw = random.choice((raw[:-1], raw + b"\x01", b"", random.randbytes(40)))
    return datatype, shape, raw


def _add(message: Message, name: str, datatype: str, shape: Iterable[int], raw: bytes) -> None:
    message.inputs.add(name=name, datatype=datatype, shape=shape)
    message.raw_input_contents.append(raw)


def _string(value: bytes) -> bytes:
    return struct.pack("<I", len(value)) + value


def _id(random: Random) -> str:
    return (
        random.choice(("id " * 500, "\n\r\x1b[31m", "ü" * 200, "%n%s", "[vita:x] x")) if random.random() < 0.2 else ""
    )


def _twice(random: Random, message: Message) -> None:
    if message.inputs:
        message.inputs.append(message.inputs[0])
        message.raw_input_contents.append(message.raw_input_contents[0])


def _without_content(random: Random, message: Message) -> None:
    del message.raw_input_contents[:1]


def _parameters(random: Random, message: Message) -> None:
    name = random.choice(("sequence_id", "sequence_start", "priority", "timeout", "triton_x", "binary_data_output", ""))
    parameter = message.parameters[name]
    if random.random() < 0.5:
        parameter.int64_param = random.choice((0, 1, -1, 2**63 - 1))
    else:
        parameter.string_param = "x\n" * 50


def _version(random: Random, message: Message) -> None:
    message.model_version = random.choice(("1", "7", "-1", "x", "9" * 40))


def _outputs(random: Random, message: Message) -> None:
    for name in random.choice((("STATUS",), ("NOTHING",), ("PCM", "PCM"), ("",))):
        message.outputs.add(name=name)


def _unknown_input(random: Random, message: Message) -> None:
    _add(message, random.choice(("VOICE", "text", "", "T\n")), "BYTES", (1,), _string(b"x"))


_ODDITIES: tuple[Callable[[Random, Message], None], ...] = (
    _twice, _without_content, _parameters, _version, _outputs, _unknown_input,
)  # fmt: skip
