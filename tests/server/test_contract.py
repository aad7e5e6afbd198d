"""The public contract on a real Triton: every task end to end, and every bad input with its code and one line."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import grpc
import numpy as np
import pytest

from server.launch import TritonServer
from triton_probe import Probe, live, public, sealed, tensor, wait_idle
from vita_audio.contract.fields import OUTPUTS
from vita_audio.contract.messages import Delta, Status
from vita_audio.contract.rates import output_samples
from vita_audio.engines.manifest import load_manifest
from vita_audio.text.tokenizer import TextTokenizer
from vita_client import Client

pytestmark = pytest.mark.server

SPEECH = np.random.default_rng(7).normal(0, 0.1, 24_000).astype(np.float32)


@pytest.fixture(scope="module")
def client(server: TritonServer) -> Iterator[Client]:
    with Client(server.grpc_url) as connected:
        yield connected


@pytest.fixture(scope="module")
def probe(server: TritonServer) -> Iterator[Probe]:
    probe = Probe(server)
    yield probe
    probe.close()


@pytest.mark.parametrize("mode", ["vanilla", "balance", "boost", "turbo", "2,3,1,7"])
@pytest.mark.parametrize(
    "request_fields",
    [
        {"text": "Hello there, how are you?"},
        {"audio": SPEECH},
        {"text": "What is said here?", "audio": SPEECH},
        {"text": "Read this aloud.", "task": "tts"},
        {"audio": SPEECH, "task": "asr"},
        {"text": "Just type.", "task": "text"},
    ],
    ids=["chat-text", "chat-speech", "chat-both", "tts", "asr", "text"],
)
def test_every_task_in_every_mode(server: TritonServer, client: Client, request_fields: dict, mode: str) -> None:
    manifest = load_manifest(server.options.engines)
    reply = client.collect(**request_fields, mode=mode, max_tokens=50, temperature=1.0, seed=11, timeout_s=30)
    status = reply.status
    assert status is not None
    assert (status.state, status.mode, status.seed) == ("done", mode, 11)
    assert status.task == request_fields.get("task", "chat")
    assert status.reason in ("max_tokens", "end_token")
    assert len(reply.tokens) == 50 or status.reason == "end_token"
    codes = [token for token in reply.tokens if manifest.vocabulary.audio_code(token) is not None]
    assert len(reply.pcm) == output_samples(len(codes))
    assert reply.text == TextTokenizer(server.options.engines / "tokenizer.json").decode(reply.tokens)
    stages = {"prompt", "lm_queue", "lm", "decode_queue", "decode"} | (
        {"speech_tokenizer"} if "audio" in request_fields else set()
    )
    assert stages == set(status.timings_ms)
    assert all(value >= 0 for value in status.timings_ms.values())


def test_responses_stream_in_order(probe: Probe) -> None:
    responses = list(probe.stream(public(TEXT="Hello", TASK="tts", MODE="vanilla", MAX_TOKENS=90, SEED=4)))
    finals = [response.infer_response.parameters["triton_final_response"].bool_param for response in responses]
    assert finals == [False] * (len(finals) - 1) + [True]
    statuses = []
    for response in responses:
        assert not response.error_message
        outputs = [output.name for output in response.infer_response.outputs]
        assert set(outputs) == {output.name for output in OUTPUTS}
        raw = response.infer_response.raw_output_contents[outputs.index("STATUS")]
        statuses.append(Status.from_json(raw[4:]))
    assert len(statuses) > 1
    assert [status.index for status in statuses] == list(range(len(statuses)))
    assert [status.final for status in statuses] == finals
    assert len({status.stream for status in statuses}) == 1


def test_the_same_seed_repeats_and_another_does_not(client: Client) -> None:
    first, again, other = (
        client.collect("Say something.", task="tts", max_tokens=60, seed=seed, timeout_s=30) for seed in (5, 5, 6)
    )
    assert first.tokens == again.tokens
    assert np.array_equal(first.pcm, again.pcm)
    assert first.tokens != other.tokens


def test_a_drawn_seed_is_told_and_repeats(client: Client) -> None:
    first = client.collect("Say something.", task="tts", max_tokens=40, timeout_s=30)
    assert first.status is not None
    again = client.collect("Say something.", task="tts", max_tokens=40, seed=first.status.seed, timeout_s=30)
    assert again.tokens == first.tokens


@pytest.mark.parametrize("rate_hz", [8_000, 44_100, 192_000])
def test_speech_at_other_rates(probe: Probe, rate_hz: int) -> None:
    speech = np.random.default_rng(1).normal(0, 0.1, rate_hz).astype(np.float32)
    responses = list(probe.stream(public(AUDIO=speech, SAMPLE_RATE=rate_hz, MAX_TOKENS=4)))
    assert not any(response.error_message for response in responses)
    assert responses[0].infer_response.outputs


def test_the_longest_clip_at_the_highest_rate_gets_through(probe: Probe) -> None:
    """92 MB in one tensor pass gRPC, shared memory, resampling and the speech tokenizer (1500 tokens), and no limit
    but the small context of these engines stops them."""
    text = probe.error(public(AUDIO=np.full(192_000 * 120, 0.1, np.float32), SAMPLE_RATE=192_000, MAX_TOKENS=4))
    assert "AUDIO: 'a prompt of 15" in text


BAD_INPUTS = {
    "nothing": ({}, "TEXT", "neither TEXT nor AUDIO was sent"),
    "empty text": ({"TEXT": ""}, "TEXT", "empty"),
    "white space": ({"TEXT": " \n\t "}, "TEXT", "white space"),
    "not UTF-8": ({"TEXT": b"\xff\xfe"}, "TEXT", "UTF-8"),
    "text longer than the context": ({"TEXT": "word " * 3_000}, "TEXT", "tokens"),
    "text far longer than the context": ({"TEXT": "word " * 100_000}, "TEXT", "characters"),
    "empty audio": ({"AUDIO": []}, "AUDIO", "empty"),
    "NaN": ({"AUDIO": [0.0] * 800 + [float("nan")]}, "AUDIO", "nan at sample 800"),
    "infinity": ({"AUDIO": [float("inf")] * 800}, "AUDIO", "inf at sample 0"),
    "rate 0": ({"AUDIO": SPEECH, "SAMPLE_RATE": 0}, "SAMPLE_RATE", "from 8000 to 192000"),
    "negative rate": ({"AUDIO": SPEECH, "SAMPLE_RATE": -16_000}, "SAMPLE_RATE", "from 8000 to 192000"),
    "absurd rate": ({"AUDIO": SPEECH, "SAMPLE_RATE": 10**9}, "SAMPLE_RATE", "from 8000 to 192000"),
    "two minutes and a bit": ({"AUDIO": np.zeros(16_000 * 121, np.float32)}, "AUDIO", "at most 120 s"),
    "16-bit samples": ({"AUDIO": SPEECH * 32_768}, "AUDIO", "[-1, 1]"),
    "unknown task": ({"TEXT": "a", "TASK": "sing"}, "TASK", "one of chat, tts, asr, text"),
    "unknown mode": ({"TEXT": "a", "MODE": "warp"}, "MODE", "'warp'"),
    "pattern of odd length": ({"TEXT": "a", "MODE": "1,10,4"}, "MODE", "'1,10,4'"),
    "pattern of zeros": ({"TEXT": "a", "MODE": "0,0"}, "MODE", "'0,0'"),
    "pattern beyond K": ({"TEXT": "a", "MODE": "1,11"}, "MODE", "10"),
    "negative temperature": ({"TEXT": "a", "TEMPERATURE": -0.1}, "TEMPERATURE", "-0.1"),
    "NaN temperature": ({"TEXT": "a", "TEMPERATURE": float("nan")}, "TEMPERATURE", "nan"),
    "top_p 0": ({"TEXT": "a", "TOP_P": 0.0}, "TOP_P", "0.0"),
    "top_p above 1": ({"TEXT": "a", "TOP_P": 1.1}, "TOP_P", "1.1"),
    "negative top_k": ({"TEXT": "a", "TOP_K": -1}, "TOP_K", "-1"),
    "no tokens": ({"TEXT": "a", "MAX_TOKENS": 0}, "MAX_TOKENS", "from 1 to"),
    "too many tokens": ({"TEXT": "a", "MAX_TOKENS": 10**6}, "MAX_TOKENS", "from 1 to"),
    "speech for tts": ({"TEXT": "a", "AUDIO": SPEECH, "TASK": "tts"}, "AUDIO", "TEXT only"),
    "tts without text": ({"TASK": "tts"}, "TEXT", "needs TEXT"),
    "asr without speech": ({"TEXT": "a", "TASK": "asr"}, "AUDIO", "needs AUDIO"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input_is_an_invalid_argument_in_one_line(probe: Probe, case: str) -> None:
    inputs, field, words = BAD_INPUTS[case]
    text = probe.error(public(**inputs))
    assert text.startswith(f"in ensemble 'vita_audio', [vita:invalid_request field={field}] {field}: ")
    assert "is not valid: " in text
    assert words in text
    assert "\n" not in text
    assert "Traceback" not in text
    assert len(text) < 400
    # A stream of this Triton carries no code; a single call to the same model does.
    code, details = probe.code(public(**inputs), "prompt")
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details == text.removeprefix("in ensemble 'vita_audio', ")


MALFORMED = {
    "wrong type": ([tensor("TEXT", "FP32", [1.0])], "data-type is 'FP32', but model 'vita_audio' expects 'BYTES'"),
    "wrong shape": ([tensor("TEXT", "BYTES", ["a", "b"])], "Expected [1], got [2]"),
    "wrong rank": ([tensor("AUDIO", "FP32", [0.0] * 4, [2, 2])], "Expected [-1], got [2,2]"),
    "unknown input": ([tensor("VOICE", "BYTES", ["a"])], "unexpected inference input 'VOICE'"),
    "fewer bytes than the shape": ([("AUDIO", "FP32", [100], bytes(8))], "Expected 400, got 8"),
    "string longer than its bytes": (
        [("TEXT", "BYTES", [1], struct.pack("<I", 2**31) + b"a")],
        "incomplete string data for inference input 'TEXT'",
    ),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_tensors_are_refused_in_one_line(probe: Probe, case: str) -> None:
    inputs, words = MALFORMED[case]
    text = probe.error(inputs)
    assert words in text
    assert "\n" not in text.strip()


def test_a_message_with_several_decodes_is_answered_decode_by_decode(server: TritonServer, probe: Probe) -> None:
    vocabulary = load_manifest(server.options.engines).vocabulary
    tokens = vocabulary.audio_ids(range(30))
    delta = Delta(Status("several", 0, "done", seed=1), tokens)
    answers = list(probe.stream(sealed(server, delta), "audio_decoder"))
    finals = [answer.infer_response.parameters["triton_final_response"].bool_param for answer in answers]
    assert finals == [False, False, True]
    samples = 0
    for index, answer in enumerate(answers):
        assert not answer.error_message
        outputs = {o.name: n for n, o in enumerate(answer.infer_response.outputs)}
        raw = answer.infer_response.raw_output_contents
        assert Status.from_json(raw[outputs["STATUS"]][4:]).index == index
        assert len(raw[outputs["TOKENS"]]) == (4 * 30 if index == 0 else 0)
        assert len(raw[outputs["PCM"]])
        samples += len(raw[outputs["PCM"]]) // 2
    assert samples == output_samples(30)


def test_nothing_is_left_behind(server: TritonServer) -> None:
    assert set(wait_idle(server).values()) == {0.0}
    assert len(live(server)) == 7
