"""What a family of questions is: facts, wordings, carriers; and every question they make together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

#: What may come before a question or a request. The last of each is never trained on.
QUESTION_CARRIERS = ("", "Please tell me, ", "Can you tell me, ", "Do you know, ", "Now tell me, ", "Tell me, please, ")
REQUEST_CARRIERS = ("", "Please ", "Can you ", "I want you to ", "Now please ")
NO_CARRIERS = ("",)


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing to know: what the wordings' `{slots}` become, the spoken answer, and its key words.

    The key words end the answer; `accepted` lists every phrase that counts (see `answers.is_right`).
    """

    key: str
    answer: str
    accepted: tuple[str, ...]
    slots: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Family:
    """Facts and the ways to ask for them.

    wordings: templates; one that ends with "?" takes question carriers, another request carriers.
    unseen_wordings: asked by the test split only. rule: a fact can be worked out from others (sums, spelling), so
    that some facts may be kept for the test; else (opposites, colours) every fact has to be taught.
    """

    name: str
    facts: tuple[Fact, ...]
    wordings: tuple[str, ...]
    unseen_wordings: tuple[str, ...] = ()
    rule: bool = False
    carriers: bool = True
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Question:
    """One fact asked in one way. `unseen_phrasing`: its wording or its carrier is kept for the test split."""

    family: str
    fact: Fact
    text: str
    unseen_phrasing: bool


def questions(family: Family) -> Iterator[Question]:
    """Every question of a family: facts x wordings x carriers, in a fixed order."""
    for fact in family.facts:
        for wording in (*family.wordings, *family.unseen_wordings):
            core = wording.format(**fact.slots)
            carriers = QUESTION_CARRIERS if core.endswith("?") else REQUEST_CARRIERS
            for carrier in carriers if family.carriers else NO_CARRIERS:
                unseen = wording in family.unseen_wordings or (carrier == carriers[-1] and family.carriers)
                yield Question(family.name, fact, _join(carrier, core), unseen)


def _join(carrier: str, core: str) -> str:
    """The carrier's and the core's words as one sentence."""
    if not carrier:
        return core[0].upper() + core[1:]
    text = f"{carrier}{core[0].lower()}{core[1:]}"
    return f"{text[:-1]}?" if carrier == "Can you " else text


def sentence(text: str) -> str:
    """A capital letter at the beginning, a full stop at the end."""
    return f"{text[0].upper()}{text[1:]}."
