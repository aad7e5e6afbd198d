"""Conversations whose answers are cut off at random moments: nothing is lost, and nothing gets into another one.

Every turn is asked again of a server without a prefix cache, alone and to its end: what had come of the answer before
it was cut must be the beginning of that one, id by id, greedy and sampled.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.closed_loop import QUESTION, SENTENCES
from benchmarks.faults.bench import SLOTS, Bench
from benchmarks.faults.rows import Row, counted, telling, unfair
from benchmarks.faults.seen import STREAM_TIMEOUT_S
from benchmarks.record import spread
from loadtest.clock import now_s
from loadtest.driver import CANCELLED, DONE
from vita_audio.contract.errors import VitaError
from vita_audio.contract.messages import Status
from vita_audio.contract.rates import INPUT_SAMPLE_RATE_HZ
from vita_client import AsyncClient, Reply, StatusUpdate
from vita_client.audio import load_speech
from vita_client.conversation import AsyncConversation
from vita_client.request import Request

#: More than slots: some find their last turn in a slot, some have lost it. As many turns at once as slots.
_TALKS = SLOTS + 2
_TURNS, _CUT_SHARE, _LATEST_S, _THINK_S = (2, 4), 0.6, 0.8, 0.1
_SAMPLED: dict[str, Any] = {"temperature": 1.0, "top_k": 50}
_APPENDED = 8_000  # samples at a time


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn, as the client of the conversation saw it.

    Args:
        before, after: the ids of the conversation; equal where nothing came of the answer.
        code: "done", "cancelled", or that of the error.
        slot_ms: of a typed turn that was sent when the answer before it was cut, and found no free slot: from the cut
            until it had one.
    """

    request: Request
    before: tuple[int, ...]
    after: tuple[int, ...]
    code: str
    error: str = ""
    status: Status | None = None
    slot_ms: float | None = None


class _Noted:
    """A client that keeps the last request of a conversation."""

    def __init__(self, client: AsyncClient) -> None:
        self._client, self.last = client, Request({})

    def send(self, request: Request, **options: Any) -> Any:
        self.last = request
        return self._client.send(request, **options)


def cells() -> Iterator[tuple[str, Callable[[Bench], Row]]]:
    yield "interrupted conversations", interruptions


def interruptions(bench: Bench) -> Row:
    """`sizes["conversations"]` conversations."""
    count = round(bench.sizes["conversations"])
    with bench.server() as server:
        turns = asyncio.run(converse(server.url, count, bench.seed))
        taken = bench.places_left(server)
        kept = asyncio.run(slots_that_keep(server.url))
        left, wrong = bench.ending(server)
    with bench.server("--prefix-cache", "off") as server:
        alone = asyncio.run(undisturbed(server.url, turns))
        wrong += bench.ending(server)[1]
    unlike = [difference(turn, reply) for turn, reply in zip(turns, alone, strict=True)]
    if taken:
        wrong.append(f"{taken:g} places are taken when all conversations are over")
    if kept != SLOTS:
        wrong.append(f"{kept} of {SLOTS} slots keep what they have read")
    wrong += sorted({text for text in unlike if text})[:3]
    wrong += unfair((turn.code for turn in turns), frozenset({DONE, CANCELLED})) + telling(each.error for each in turns)
    figures = counts(turns) | {"unlike": sum(map(bool, unlike)), "conversations": count}
    callers = f"{counted(turn.code for turn in turns)}; {figures['unlike']} unlike their undisturbed run"
    return Row("interruptions", f"{count} interrupted conversations", callers, left=left, wrong=tuple(wrong),
               failed=sum(bool(turn.error) for turn in turns), figures=figures)  # fmt: skip


def counts(turns: Sequence[Turn]) -> dict[str, Any]:
    """How many answers were cut, how many of those that could found their beginning, and how soon a slot was free."""
    waits = [turn.slot_ms for turn in turns if turn.slot_ms is not None]
    later = [turn.status for turn in turns if turn.before and turn.status is not None]
    return {
        "turns": len(turns),
        "cut": sum(turn.code == CANCELLED for turn in turns),
        "cut_in_the_answer": sum(turn.code == CANCELLED and turn.after != turn.before for turn in turns),
        "later_turns": len(later),
        "found": sum(status.cached_tokens > status.prompt_tokens / 2 for status in later),
        "slots_waited_for": len(waits),
        **spread("slot_free_ms", waits),
        "slot_free_ms_max": max(waits, default=None),
    }


def difference(turn: Turn, alone: Reply | None) -> str:
    """How a turn is unlike the same request that nothing disturbed, in words; empty: it is not."""
    if alone is None:
        return "" if turn.code == CANCELLED else f"a turn ended as {turn.code} and left nothing"
    whole, came = alone.history, turn.after
    if came == whole or (turn.code == CANCELLED and len(alone.prompt) <= len(came) and came == whole[: len(came)]):
        return ""
    place = next((n for n, pair in enumerate(zip(came, whole, strict=False)) if len(set(pair)) > 1), len(whole))
    where = (
        f"id {place - len(alone.prompt)} of its answer" if place >= len(alone.prompt) else f"id {place} of its prompt"
    )
    return f"a turn ({turn.code}) differs from its undisturbed run at {where}"


async def converse(url: str, count: int, seed: int) -> list[Turn]:
    """All turns of `count` conversations."""
    at_once, numbers, turns = asyncio.Semaphore(SLOTS), iter(range(count)), list[Turn]()
    async with AsyncClient(url) as client:

        async def talker() -> None:
            for number in numbers:
                turns.extend(await _conversation(client, random.Random(f"{seed} {number}"), number, at_once))

        await asyncio.gather(*(talker() for _ in range(_TALKS)))
    return turns


async def _conversation(
    client: AsyncClient, choice: random.Random, number: int, at_once: asyncio.Semaphore
) -> list[Turn]:
    noted, turns = _Noted(client), list[Turn]()
    fields: dict[str, Any] = {"seed": number, "max_tokens": choice.randint(10, 60), "timeout_s": STREAM_TIMEOUT_S}
    talk = AsyncConversation(noted, **fields, **(_SAMPLED if choice.random() < 0.5 else {"temperature": 0.0}))
    count, cut_s = choice.randint(*_TURNS), None
    while len(turns) < count:
        await asyncio.sleep(choice.expovariate(1 / _THINK_S))
        async with at_once:
            while len(turns) < count:
                turn, cut_s = await _turn(noted, talk, choice, cut_s)
                turns.append(turn)
                if turn.code != CANCELLED:
                    break
                if talk.history and choice.random() < 0.5:
                    talk.heard(choice.uniform(0, 3))
    return turns


async def _turn(
    noted: _Noted, talk: AsyncConversation, choice: random.Random, after_cut_s: float | None
) -> tuple[Turn, float | None]:
    """A turn, and when it was cut."""
    text: str | None = choice.choice(SENTENCES)
    if choice.random() < 0.4:
        text, spoken = None, _speech(choice)
        for start in range(0, len(spoken), _APPENDED):
            await talk.append_audio(spoken[start : start + _APPENDED])
    before, first, code, error, cut_s = talk.history, None, DONE, "", None
    sent_s = now_s()
    try:
        async with await talk.respond(text) as answer:

            def cut() -> None:
                nonlocal cut_s
                cut_s = now_s()
                answer.cancel()

            timer, wait_s = None, choice.uniform(0, _LATEST_S) if choice.random() < _CUT_SHARE else None
            begun = choice.random() < 0.6  # cut after the first response, or any time after it was asked
            later = asyncio.get_running_loop().call_later
            if wait_s is not None and not begun:
                timer = later(wait_s, cut)
            async for event in answer:
                if first is None and isinstance(event, StatusUpdate):
                    first = event.status
                    if wait_s is not None and begun:
                        timer = later(wait_s, cut)
            if timer is not None:
                timer.cancel()
            code = CANCELLED if answer.cancelled else DONE
    except VitaError as failure:
        code, error = failure.code, f"{failure.code}: {failure}"
    slot_ms = None
    if first is not None and after_cut_s is not None and "AUDIO" not in noted.last.values:
        queued_ms = first.timings_ms["lm_queue"]
        slot_ms = (sent_s - after_cut_s) * 1e3 + first.timings_ms["prompt"] + queued_ms if queued_ms > 1 else None
    return Turn(noted.last, before, talk.history, code, error, first, slot_ms), cut_s


def _speech(choice: random.Random) -> np.ndarray:
    """One to seven seconds; the longer ones are read ahead."""
    question = np.roll(load_speech(QUESTION), choice.randrange(10_000))
    samples = round(choice.uniform(1, 7) * INPUT_SAMPLE_RATE_HZ)
    return np.tile(question, -(-samples // len(question)))[:samples]


async def undisturbed(url: str, turns: Sequence[Turn]) -> list[Reply | None]:
    """The same requests, each to its end; None for a turn of which nothing came."""
    at_once = asyncio.Semaphore(SLOTS)
    async with AsyncClient(url) as client:

        async def ask(turn: Turn) -> Reply | None:
            if turn.after == turn.before:
                return None
            async with at_once:
                return await client.send(turn.request, timeout_s=STREAM_TIMEOUT_S).collect()

        return list(await asyncio.gather(*map(ask, turns)))


async def slots_that_keep(url: str) -> int:
    """Of conversations as many as slots, one after the other, the second turns that found the first one."""
    found = 0
    async with AsyncClient(url) as client:
        talks = [client.conversation(system=f"{n} " * 60, max_tokens=20, temperature=0.0) for n in range(SLOTS)]
        for talk in talks:
            await (await talk.respond(SENTENCES[0])).collect()
        for talk in talks:
            reply = await (await talk.respond(SENTENCES[1])).collect()
            found += reply.status is not None and reply.status.cached_tokens > reply.status.prompt_tokens / 2
    return found
