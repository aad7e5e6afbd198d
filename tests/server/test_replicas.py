"""Two real servers: turns that are sent to either at random have the answers that one server gives."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from server.launch import TritonServer
from server.options import ServerOptions
from vita_client import Client, Pcm

pytestmark = pytest.mark.server

TALKS, TURNS = 3, 4
TEXTS = ("Hello there.", "And plus four?", "Say it again.", "What was my name?")
SPEECH = np.random.default_rng(9).normal(0, 0.1, 6 * 16_000).astype(np.float32)


@pytest.fixture(scope="module")
def clients(server: TritonServer, engines: Path) -> Iterator[list[Client]]:
    options = ServerOptions(engines=engines, grpc_port=0, metrics_port=0, slots=2, queue=8)  # not sized alike
    with ExitStack() as opened:
        other = opened.enter_context(TritonServer(options))
        yield [opened.enter_context(Client(url)) for url in (server.grpc_url, other.grpc_url)]


def talk(number: int, choose: Callable[[], Client], served: list[Client]) -> list[tuple[int, ...]]:
    """The ids of a conversation after each turn: text, speech that is read ahead, an answer that was heard in part."""
    seen: list[tuple[int, ...]] = []
    for turn in range(TURNS):
        client = choose()
        served.append(client)
        went_on = client.conversation(temperature=0.0, max_tokens=60, system=f"You are Ada {number}.")
        if seen:
            went_on.resume(seen[-1])
        if turn == 2:
            went_on.heard(0.5)
        if turn == 1:
            went_on.append_audio(SPEECH)
        went_on.respond(None if turn == 1 else TEXTS[(turn + number) % len(TEXTS)]).collect()
        seen.append(went_on.history)
    return seen


def test_turns_that_are_sent_to_either_of_two_servers_are_answered_as_by_one(clients: list[Client]) -> None:
    choice, served = random.Random(4), list[Client]()
    spread = [talk(number, lambda: choice.choice(clients), served) for number in range(TALKS)]
    alone = [talk(number, lambda: clients[0], []) for number in range(TALKS)]
    assert spread == alone
    assert 0 < served.count(clients[0]) < len(served)


def test_an_answer_that_was_interrupted_at_one_server_goes_on_at_the_other(clients: list[Client]) -> None:
    here, there = clients
    first = here.conversation(temperature=0.0, max_tokens=100)
    with first.respond("Hello there.") as answer:
        for event in answer:
            if isinstance(event, Pcm):
                answer.cancel()
    answers = []
    for client in (here, there):
        second = client.conversation(temperature=0.0, max_tokens=30)
        second.resume(first.history)
        second.heard(0.2)
        second.respond("Go on.").collect()
        answers.append(second.history)
    assert answers[0] == answers[1]
    assert len(answers[0]) > len(first.history)
