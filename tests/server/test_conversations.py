"""Several turns on a real Triton: a client joins what it received, a slot that has read a turn reads only the rest."""

from __future__ import annotations

from itertools import count, pairwise
from pathlib import Path

import numpy as np
import pytest

from server.launch import TritonServer
from triton_probe import metrics, wait_idle
from vita_audio.text.tokenizer import TextTokenizer
from vita_audio.text.vocabulary import Vocabulary
from vita_client import Client, PromptIds, Reply, RequestRejected

pytestmark = pytest.mark.server

TURNS = ("What is two plus three?", "And plus four?", "Say it again.")
SPEECH = np.random.default_rng(3).normal(0, 0.1, 9 * 16_000).astype(np.float32)
SLOTS = 8  # of the fixture
NUMBERS = count(100)


@pytest.fixture(scope="module")
def vocabulary(engines: Path) -> Vocabulary:
    return TextTokenizer(engines / "tokenizer.json").vocabulary


@pytest.fixture(scope="module")
def client(server: TritonServer) -> Client:
    return Client(server.grpc_url)


def forget(client: Client) -> None:
    """Have every slot read something else, which no slot has read before."""
    for _ in range(SLOTS):
        client.collect("Well.", task="text", max_tokens=1, system=f"{next(NUMBERS)} " * 20)


def talk(client: Client, seed: int, between: bool = False) -> list[Reply]:
    replies: list[Reply] = []
    for text in TURNS:
        history = replies[-1].history if replies else None
        replies.append(client.collect(text, history=history, max_tokens=60, seed=seed, temperature=0.7))
        if between:
            forget(client)
    return replies


def test_a_turn_that_is_read_where_the_last_one_ended_is_answered_as_if_all_were_read(
    server: TritonServer, client: Client
) -> None:
    kept = talk(client, 5)
    forget(client)
    forgotten = talk(client, 5, between=True)
    assert [reply.tokens for reply in kept] == [reply.tokens for reply in forgotten]
    assert [reply.prompt for reply in kept] == [reply.prompt for reply in forgotten]
    for earlier, later in pairwise(kept):
        said = earlier.history[:-1]  # an end token may be written as the other one
        assert later.prompt[: len(said)] == said
        assert later.status is not None
        # The last tokens of an answer have not been through the backbone.
        assert len(said) - 20 < later.status.cached_tokens <= len(said)
        assert later.status.prompt_tokens == len(later.prompt)
    assert [
        reply.status.cached_tokens for reply in forgotten if reply.status and reply.status.cached_tokens >= 20
    ] == []
    counted = metrics(server)
    assert sum(value for name, value in counted.items() if name.startswith("vita_prompt_tokens_total")) > 0
    assert set(wait_idle(server).values()) == {0.0}


def test_the_prompt_comes_once_before_everything_else(client: Client) -> None:
    with client.stream("Hello there.", max_tokens=40) as stream:
        events = list(stream)
    assert isinstance(events[0], PromptIds)
    assert sum(isinstance(event, PromptIds) for event in events) == 1


def test_an_answer_that_was_interrupted_is_cut_to_what_was_heard(client: Client, vocabulary: Vocabulary) -> None:
    first = client.collect("Hello there.", max_tokens=80, seed=2)
    heard = 3
    assert sum(vocabulary.audio_code(token) is not None for token in first.tokens) > heard
    second = client.collect("Go on.", history=first.history, heard=heard, max_tokens=5)
    added = second.prompt[len(first.prompt) :]
    answer = added[: added.index(vocabulary.im_end)]
    assert sum(vocabulary.audio_code(token) is not None for token in answer) == heard
    assert not vocabulary.is_text(answer[-1])


@pytest.mark.parametrize("past", [False, True])
def test_speech_that_goes_on_is_read_while_it_does(client: Client, past: bool) -> None:
    history = client.collect("Hello there.", max_tokens=20, seed=2).history if past else None
    forget(client)
    alone = client.collect(audio=SPEECH, history=history, max_tokens=30, seed=1)
    forget(client)
    for seconds in (2, 5, 8.5):
        read = client.collect(audio=SPEECH[: int(seconds * 16_000)], history=history, read_only=1)
        assert (read.tokens, len(read.pcm), read.text) == ((), 0, "")
        assert read.status is not None
        assert (read.status.state, read.status.reason) == ("done", "read")
    whole = client.collect(audio=SPEECH, history=history, max_tokens=30, seed=1)
    assert whole.tokens == alone.tokens
    assert whole.status is not None
    assert whole.status.prompt_tokens - whole.status.cached_tokens < 40  # of 113 tokens of speech


@pytest.mark.parametrize(
    ("history", "words"),
    [([5, 6], "no turn begins at id 0"), ([2**31 - 1], "no turn begins"), ([0] * 5000, "no turn begins")],
)
def test_ids_that_are_no_conversation_are_refused_in_one_line(client: Client, history: list[int], words: str) -> None:
    with pytest.raises(RequestRejected, match=words) as caught:
        client.collect("Hello.", history=history)
    assert caught.value.field == "HISTORY"
    assert "\n" not in str(caught.value)


def test_a_history_that_no_context_holds_is_refused_or_shortened(client: Client, vocabulary: Vocabulary) -> None:
    first = client.collect("Hello there.", max_tokens=5, seed=2)
    turn = [*first.history, vocabulary.im_end, first.prompt[first.prompt.index(vocabulary.im_end) + 1]]
    system = turn.index(vocabulary.im_end) + 2
    history = [*turn[:system], *(turn[system:] * 400)]
    with pytest.raises(RequestRejected, match="tokens fit into the context"):
        client.collect("Go on.", history=history)
    shortened = client.collect("Go on.", history=history, history_overflow="drop", max_tokens=5)
    assert list(shortened.prompt[:system]) == turn[:system]
    assert len(shortened.prompt) < len(history) / 2
