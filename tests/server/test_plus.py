"""A Plus checkpoint on a real Triton: every task, conversations whose speech comes again, and what is refused."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from server.launch import TritonServer
from server.options import ServerOptions
from triton_probe import metrics, wait_idle
from vita_audio.text.tokenizer import TextTokenizer
from vita_audio.text.vocabulary import Vocabulary
from vita_client import AsyncClient, Client, Reply, RequestRejected

pytestmark = pytest.mark.server

ROOT = Path(__file__).resolve().parents[2]
NOISE = np.random.default_rng(3)
CLIPS = [NOISE.normal(0, 0.1, samples).astype(np.float32) for samples in (40_000, 25_000, 32_000)]
OTHER = NOISE.normal(0, 0.1, len(CLIPS[0])).astype(np.float32)


@pytest.fixture(scope="module")
def plus_engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CPU engines of the tiny random-weight Plus checkpoint, built as a user builds them."""
    folder = tmp_path_factory.mktemp("plus")
    tiny = ["--size", "tiny", "--speech-input", "sensevoice", "--out", str(folder / "checkpoint")]
    built = ["--checkpoint", str(folder / "checkpoint"), "--target", "cpu", "--out", str(folder / "engines")]
    for command in (["vita_audio.checkpoint.random_weights", *tiny], ["build_engines", *built]):
        subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return folder / "engines"


@pytest.fixture(scope="module", params=[False, True], ids=["apart", "one process"])
def plus(plus_engines: Path, request: pytest.FixtureRequest) -> Iterator[TritonServer]:
    options = ServerOptions(
        engines=plus_engines, grpc_port=0, metrics_port=0, slots=8, queue=32, one_process=request.param
    )
    with TritonServer(options) as running:
        yield running


@pytest.fixture(scope="module")
def vocabulary(plus_engines: Path) -> Vocabulary:
    return TextTokenizer(plus_engines / "tokenizer.json").vocabulary


@pytest.fixture(scope="module")
def client(plus: TritonServer) -> Client:
    return Client(plus.grpc_url)


def talk(client: Client) -> list[Reply]:
    conversation = client.conversation(max_tokens=20, seed=1)
    replies = []
    for clip in CLIPS:
        conversation.append_audio(clip)
        replies.append(conversation.respond().collect())
    return replies


def test_every_task_is_answered(client: Client, vocabulary: Vocabulary) -> None:
    chat = client.collect(audio=CLIPS[0], max_tokens=60, seed=2)
    asr = client.collect(audio=CLIPS[0], task="asr", max_tokens=30)
    tts = client.collect("Hello there.", task="tts", max_tokens=60, seed=2)
    text = client.collect("Hello there.", task="text", max_tokens=30)
    for reply, clips in ((chat, 1), (asr, 1), (tts, 0), (text, 0)):
        assert reply.status is not None
        assert (reply.status.state, reply.status.history_clips) == ("done", clips)
        assert reply.tokens
        places = reply.prompt.count(vocabulary.context_of_audio or -1)
        assert places == (46 if clips else 0)  # 248 frames, a row for every 6th, and 4 queries
        assert ("speech_tokenizer" in reply.status.timings_ms) == bool(clips)
        assert vocabulary.context_of_audio not in reply.tokens
    assert len(chat.pcm)


def test_what_is_said_and_not_how_long_it_is_decides_the_answer(client: Client) -> None:
    first = client.collect(audio=CLIPS[0], max_tokens=40, temperature=1.0, seed=4)
    other = client.collect(audio=OTHER, max_tokens=40, temperature=1.0, seed=4)
    again = client.collect(audio=CLIPS[0], max_tokens=40, temperature=1.0, seed=4)
    assert first.prompt == other.prompt
    assert first.tokens == again.tokens != other.tokens
    assert other.status is not None
    assert other.status.cached_tokens < first.prompt.index(first.prompt[-1])  # only what comes before the clip
    assert other.status.prompt_tokens - other.status.cached_tokens > 46


def test_three_turns_are_read_where_the_last_one_ended_and_answered_as_if_all_were_read(
    plus: TritonServer, client: Client
) -> None:
    kept = talk(client)
    assert [reply.status.history_clips for reply in kept if reply.status] == [1, 2, 3]
    for earlier, later in pairwise(kept):
        assert later.status is not None
        assert later.status.cached_tokens >= len(earlier.prompt)
    for number in range(8):  # every slot reads something else
        client.collect("Well.", task="text", max_tokens=1, system=f"{number} " * 40)
    history, clips = kept[1].history, [*CLIPS[:2]]
    alone = client.collect(
        audio=CLIPS[2],
        history=history,
        history_audio=np.concatenate(clips),
        history_audio_samples=[len(clip) for clip in clips],
        max_tokens=20,
        seed=1,
    )
    assert alone.status is not None
    assert alone.status.cached_tokens < 10
    assert (alone.prompt, alone.tokens) == (kept[2].prompt, kept[2].tokens)
    assert set(wait_idle(plus).values()) == {0.0}
    assert metrics(plus)['vita_ttfa_stage_ms_count{stage="speech_tokenizer"}'] > 0


def test_oldest_turns_are_dropped_with_their_clips(client: Client) -> None:
    """Four clips of 250 places each do not fit into the context of 1024 tokens."""
    conversation, wanted = client.conversation(max_tokens=20, seed=1, mode="vanilla"), []
    for _ in range(4):
        conversation.append_audio(NOISE.normal(0, 0.1, 15 * 16_000).astype(np.float32))
        reply = conversation.respond().collect()
        assert reply.status is not None
        wanted.append(reply.status.history_clips)
        assert len(conversation.clips) == wanted[-1]
    assert wanted == [1, 2, 3, 2]


def test_eight_at_once_are_answered_as_alone(plus: TritonServer, client: Client) -> None:
    speech = [NOISE.normal(0, 0.1, 8000 + 3000 * number).astype(np.float32) for number in range(8)]
    alone = [client.collect(audio=clip, max_tokens=40, seed=number) for number, clip in enumerate(speech)]

    async def together() -> list[Reply]:
        async with AsyncClient(plus.grpc_url) as several:
            asked = (several.collect(audio=clip, max_tokens=40, seed=number) for number, clip in enumerate(speech))
            return list(await asyncio.gather(*asked))

    for single, reply in zip(alone, asyncio.run(together()), strict=True):
        assert (reply.tokens, reply.text) == (single.tokens, single.text)
        assert np.array_equal(reply.pcm, single.pcm)


def test_what_is_before_a_clip_that_goes_on_is_read_ahead(client: Client) -> None:
    system = "You are Ada, and this is long enough to be worth reading ahead. " * 3
    read = client.collect(audio=CLIPS[0][:20_000], system=system, read_only=1)
    assert read.status is not None
    assert (read.status.reason, read.status.history_clips) == ("read", 0)
    assert "speech_tokenizer" not in read.status.timings_ms
    whole = client.collect(audio=CLIPS[0], system=system, max_tokens=10)
    assert whole.prompt[: len(read.prompt)] == read.prompt
    assert whole.status is not None
    assert whole.status.cached_tokens == len(read.prompt)


@pytest.mark.parametrize(
    ("clips", "words"),
    [
        ([], "'0 clips' is not valid: HISTORY has 1 turns with speech; send the last 1 clips"),
        ([CLIPS[0], CLIPS[1]], "'2 clips' is not valid: HISTORY has 1 turns with speech"),
        ([CLIPS[1]], "'clip 1 of 30 places' is not valid: HISTORY has 46 for it; send the clips as they were sent"),
        ([np.zeros(40_000, np.float32)], "2.50 s of silence"),
        ([np.full(380, 0.1, np.float32)], r"needs at least 0\.025 s"),
    ],
)
def test_clips_that_are_not_those_of_the_history_are_refused(
    client: Client, clips: list[np.ndarray], words: str
) -> None:
    history = client.collect(audio=CLIPS[0], max_tokens=5, seed=2).history
    joined = np.concatenate([np.zeros(0, np.float32), *clips])
    with pytest.raises(RequestRejected, match=words) as caught:
        client.collect(
            "Go on.", history=history, history_audio=joined, history_audio_samples=[len(clip) for clip in clips]
        )
    assert caught.value.field == "HISTORY_AUDIO"
    assert "\n" not in str(caught.value)


def test_other_bad_speech_is_refused_in_one_line(client: Client, vocabulary: Vocabulary) -> None:
    history = list(client.collect(audio=CLIPS[0], max_tokens=5, seed=2).history)
    typed = client.collect("Hello.", max_tokens=5, seed=2).history
    begin = history.index(vocabulary.begin_of_audio)
    clip = history[begin : history.index(vocabulary.end_of_audio) + 1]
    sent = {"history_audio": CLIPS[0], "history_audio_samples": [40_000]}
    for asked, field, words in (
        ({"audio": np.full(380, 0.1, np.float32)}, "AUDIO", r"\(0\.024 s\).*needs at least 0\.025 s"),
        ({"audio": np.zeros(16_000, np.float32)}, "AUDIO", "1.00 s of silence"),
        ({"history": [*history[:begin], *clip, *history[begin:]], **sent}, "HISTORY", "has 2 clips of speech"),
        ({"history": [*history, *clip], **sent}, "HISTORY", "stands in no turn|no turn begins"),
        ({"history": [*history[:begin], *history[begin + 1 :]], **sent}, "HISTORY", "is not between its tags"),
        ({"history": typed, **sent}, "HISTORY_AUDIO", "HISTORY has 0 turns with speech; leave it out"),
    ):
        with pytest.raises(RequestRejected, match=words) as caught:
            client.collect(None if "audio" in asked else "Go on.", **asked)  # type: ignore[arg-type]
        assert caught.value.field == field
        assert "\n" not in str(caught.value)


def test_a_base_checkpoint_wants_no_clips(server: TritonServer) -> None:
    base = Client(server.grpc_url)
    first = base.collect(audio=CLIPS[0], max_tokens=5, seed=2)
    assert first.status is not None
    assert first.status.history_clips == 0
    with pytest.raises(RequestRejected, match="reads speech as tokens, and HISTORY has them; leave it out") as caught:
        base.collect("Go on.", history=first.history, history_audio=CLIPS[0], history_audio_samples=[40_000])
    assert caught.value.field == "HISTORY_AUDIO"
