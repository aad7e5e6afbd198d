"""Conversations as they should not be, on a real Triton: one clear error each, nothing held, the next turn works."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from server.launch import TritonServer
from triton_probe import Probe, public, wait_idle
from vita_audio.contract.errors import InvalidRequest
from vita_audio.contract.limits import MAX_HISTORY_TOKENS
from vita_audio.text.tokenizer import TextTokenizer
from vita_audio.text.vocabulary import Vocabulary
from vita_client import Client, Conversation, Reply, RequestRejected

pytestmark = pytest.mark.server

#: Nine seconds: two blocks of the tokenizer that can be read ahead, and a rest.
SPEECH = np.random.default_rng(5).normal(0, 0.1, 9 * 16_000).astype(np.float32)
NUMBERS = count(1000)
SLOTS = 8  # of the fixture


@pytest.fixture(scope="module")
def vocabulary(engines: Path) -> Vocabulary:
    return TextTokenizer(engines / "tokenizer.json").vocabulary


@pytest.fixture
def client(server: TritonServer) -> Iterator[Client]:
    with Client(server.grpc_url) as opened:
        yield opened
    assert set(wait_idle(server).values()) == {0.0}, "something is held"


@pytest.fixture
def first(client: Client) -> Reply:
    return client.collect("Hello there.", max_tokens=20, seed=2, temperature=0.0)


def forget(client: Client) -> None:
    """Have every slot read something that no slot has read before."""
    for _ in range(SLOTS):
        client.collect("Well.", task="text", max_tokens=1, system=f"{next(NUMBERS)} " * 20)


Change = Callable[[list[int], Vocabulary], Sequence[int]]
CHANGES: dict[str, tuple[Change, str]] = {
    "an id beyond the vocabulary": (lambda ids, v: [*ids, 2**31 - 1], "stands in no turn of this checkpoint"),
    "a tag within an answer": (lambda ids, v: [*ids, v.im_start], "stands in no turn of this checkpoint"),
    "ids of another checkpoint": (lambda ids, v: [token + 1 for token in ids], "another checkpoint's"),
    "a user's turn that never closes": (
        lambda ids, v: ids[: len(ids) - ids[::-1].index(v.im_start) - 3],
        "ends within a turn of user",
    ),
    "an answer without its beginning": (lambda ids, v: ids[1:], "no turn begins at id 0"),
    "a system turn alone": (lambda ids, v: ids[: ids.index(v.im_end) + 2], "ends with a turn of system"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_history_that_is_none_is_refused_and_the_right_one_is_not(
    client: Client, first: Reply, vocabulary: Vocabulary, name: str
) -> None:
    change, words = CHANGES[name]
    with pytest.raises(RequestRejected, match=words) as caught:
        client.collect("And now?", history=change(list(first.history), vocabulary))
    assert caught.value.field == "HISTORY"
    assert "\n" not in str(caught.value)
    assert client.collect("And now?", history=first.history, max_tokens=5).prompt[: len(first.prompt)] == first.prompt


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (np.array([-5, 3]), "ids are numbers from 0"),
        (np.zeros(MAX_HISTORY_TOKENS + 1, np.int32), f"at most {MAX_HISTORY_TOKENS} are taken"),
    ],
)
def test_the_server_checks_what_a_client_of_another_make_sends(
    server: TritonServer, client: Client, ids: np.ndarray, words: str
) -> None:
    probe = Probe(server)
    said = probe.error(public(TEXT="Hello.", HISTORY=ids))
    assert words in said
    assert "HISTORY" in said
    assert "\n" not in said
    probe.close()


def test_one_answer_at_a_time_and_the_one_that_runs_is_not_disturbed(client: Client, first: Reply) -> None:
    talk = client.conversation(seed=2, temperature=0.0, max_tokens=20)
    with talk.respond("Hello there.") as answer:
        next(answer)
        for misuse in (
            lambda: talk.respond("And now?"),
            lambda: talk.append_audio(SPEECH),
            lambda: talk.append_text("And"),
        ):
            with pytest.raises(InvalidRequest, match="an answer is still coming"):
                misuse()
        answer.collect()
    assert talk.history == first.history
    assert talk.seconds == 0


def at_once(talk: Conversation) -> None:
    talk.append_audio(SPEECH)


def in_small_pieces(talk: Conversation) -> None:
    for start in range(0, len(SPEECH), 800):
        talk.append_audio(SPEECH[start : start + 800])


def with_long_pauses_between(talk: Conversation) -> None:
    """So slow that the slot which reads ahead is taken by others meanwhile."""
    for start in range(0, len(SPEECH), 5 * 16_000):
        talk.append_audio(SPEECH[start : start + 5 * 16_000])
        forget(talk._client)


@pytest.mark.parametrize("append", [at_once, in_small_pieces, with_long_pauses_between])
def test_how_fast_speech_is_appended_changes_nothing(client: Client, append: Callable[[Conversation], None]) -> None:
    alone = client.collect(audio=SPEECH, max_tokens=30, seed=4)
    forget(client)
    talk = client.conversation(max_tokens=30, seed=4)
    append(talk)
    assert talk.respond().collect().tokens == alone.tokens
    assert talk.history == alone.history


def test_a_turn_that_is_read_and_never_answered_holds_nothing(server: TritonServer, client: Client) -> None:
    talks = [client.conversation() for _ in range(2 * SLOTS)]
    for number, talk in enumerate(talks):
        talk.append_audio(np.roll(SPEECH, number)[: 5 * 16_000])
    assert set(wait_idle(server).values()) == {0.0}  # and no reader has ended its stream yet
    assert talks[0].history == ()


def test_a_conversation_that_was_left_alone_goes_on_as_if_it_had_not(client: Client) -> None:
    """An hour of other callers: all that the server had of it is gone, and the answer is the same."""

    def second(leave: Callable[[], None]) -> tuple[int, ...]:
        talk = client.conversation(seed=7, max_tokens=30, temperature=0.8)
        talk.respond("Hello there.").collect()
        leave()
        reply = talk.respond("And now?").collect()
        cached.append(reply.status.cached_tokens if reply.status else -1)
        return reply.tokens

    cached: list[int] = []
    assert second(lambda: None) == second(lambda: forget(client))
    assert cached[0] > 20 > cached[1]
