"""Dialogues of the test split, held with a running server: which answers are right, by depth and by what they need."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from evaluation.scores import Scores, read_wave
from evaluation.serving import MAX_TOKENS
from training.data.answers import is_right
from training.data.manifest import ChatSample, read_chat
from vita_client import Client

_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class TurnOutcome:
    """One answer. `spoken`: the user speaks and is answered in speech, else both write. `depth`: from 1."""

    id: str
    mode: str
    spoken: bool
    depth: int
    memory: bool  # it needs the turns before
    asked: str
    reference: str
    text: str
    right: bool

    def record(self) -> dict[str, Any]:
        return {"kind": "dialogue", **asdict(self)}


def load_dialogues(data: Path, limit: int, seed: int = 0) -> list[ChatSample]:
    """At most `limit` spoken and `limit` written dialogues of the test split; the same for the same seed."""
    samples = [sample for sample in read_chat(data, "test") if sample.task == "dialogue"]
    random.Random(f"{seed} dialogues").shuffle(samples)
    return [sample for spoken in (True, False) for sample in [s for s in samples if bool(s.voice) == spoken][:limit]]


def hold_all(url: str, dialogues: Iterable[ChatSample], data: Path, mode: str) -> Iterator[TurnOutcome]:
    """Every answer, in order; greedy, as the server's defaults are. Raises VitaError: the server failed."""
    with Client(url) as client:
        for sample in dialogues:
            spoken = bool(sample.voice)
            task, of_mode = ("chat", mode) if spoken else ("text", None)
            talk = client.conversation(timeout_s=_TIMEOUT_S, task=task, mode=of_mode, max_tokens=MAX_TOKENS, seed=0)
            for depth, turn in enumerate(sample.turns, 1):
                if spoken:
                    talk.append_audio(*read_wave(data / sample.audios[2 * (depth - 1)]))
                reply = talk.respond(None if spoken else turn["asked"]).collect()
                yield TurnOutcome(
                    sample.id, mode, spoken, depth, turn["memory"], turn["asked"], turn["answer"], reply.text,
                    is_right(reply.text, turn["accepted"]),
                )  # fmt: skip


def score_dialogues(outcomes: Sequence[TurnOutcome], scores: Scores) -> None:
    """Shares of right answers (as text), by depth, and of those that need memory, into `scores.dialogues`."""
    for name, spoken in (("spoken", True), ("text", False)):
        of = [outcome for outcome in outcomes if outcome.spoken == spoken]
        groups = {f"turn {depth}": [o for o in of if o.depth == depth] for depth in sorted({o.depth for o in of})}
        groups |= {"all": of, "memory": [o for o in of if o.memory]}
        scores.dialogues |= {
            f"{name} {group}": {"right": sum(o.right for o in found) / len(found), "asked": len(found)}
            for group, found in groups.items()
            if found
        }
