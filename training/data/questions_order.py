"""Questions about order: days, months, letters, and places in a list."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import permutations

from training.data.answers import WHOLE
from training.data.families import Fact, Family, sentence
from training.data.lexicon import CATEGORIES, DAYS, LETTERS, MONTHS, ORDINALS, PLACES, THINGS, UNCOUNTED

_ECHOES = 1000
_ECHO_LETTERS = 5  # short words without context are guesswork for any ear


def _neighbours(name: str, kind: str, sequence: Sequence[str], circular: bool, two: bool, answer_form: str) -> Family:
    """What comes before and after each member; with `two` also two places away."""
    facts = []
    steps = [("after", 1), ("before", -1), *([("two {}s after", 2), ("two {}s before", -2)] if two else [])]
    for index, member in enumerate(sequence):
        for words, step in steps:
            target = index + step
            if not circular and not 0 <= target < len(sequence):
                continue
            answer, side = sequence[target % len(sequence)], words.format(kind)
            facts.append(
                Fact(
                    f"{side} {member}",
                    sentence(answer_form.format(kind=kind, side=side, member=member, answer=answer)),
                    (answer,),
                    {"side": side, "member": member},
                )
            )
    return Family(
        name,
        tuple(facts),
        (
            f"What {kind} is {{side}} {{member}}?",
            f"Which {kind} comes {{side}} {{member}}?",
            f"Say the {kind} {{side}} {{member}}.",
        ),
        (f"What is the {kind} {{side}} {{member}}?",),
    )


def places() -> Family:
    """The n-th day and month."""
    facts = []
    for kind, whole, sequence in (("day", "week", DAYS), ("month", "year", MONTHS)):
        for ordinal, member in zip(ORDINALS, sequence, strict=False):
            facts.append(
                Fact(
                    f"{ordinal} {kind}",
                    f"The {ordinal} {kind} is {member}.",
                    (member,),
                    {"ordinal": ordinal, "kind": kind, "whole": whole},
                )
            )
    return Family(
        "places",
        tuple(facts),
        (
            "What is the {ordinal} {kind} of the {whole}?",
            "Which {kind} of the {whole} is the {ordinal}?",
            "Name the {ordinal} {kind} of the {whole}.",
        ),
        ("Which is the {ordinal} {kind} of the {whole}?",),
    )


def lists() -> Family:
    """The first, second or last of three words that were just said."""
    pool = [word for word in (*CATEGORIES["animal"], *CATEGORIES["fruit"], *THINGS[::3]) if word not in UNCOUNTED]
    facts = []
    for number, triple in enumerate(permutations(pool, 3)):
        if number % 29:  # a spread sample of all triples
            continue
        which, index = (("first", 0), ("second", 1), ("last", 2))[number // 29 % 3]
        said = ", ".join(triple)
        facts.append(
            Fact(
                f"{which} of {said}",
                f"The {which} word was {triple[index]}.",
                (triple[index],),
                {"which": which, "said": said},
            )
        )
    return Family(
        "lists",
        tuple(facts),
        ("What is the {which} word, {said}?", "Which word is {which}, {said}?", "Say the {which} word, {said}."),
        ("Which is the {which} word, {said}?",),
        rule=True,
        carriers=False,
        weight=0.7,
    )


def echo() -> Family:
    """Three words to say after the speaker."""
    pool = [word for word in dict.fromkeys((*CATEGORIES["animal"], *THINGS, *PLACES)) if len(word) >= _ECHO_LETTERS]
    facts = []
    draw = random.Random(0)
    for _ in range(_ECHOES):
        words = draw.sample(pool, 3)
        said = ", ".join(words)
        facts.append(Fact(said, sentence(said), (WHOLE + " ".join(words),), {"said": said}))
    return Family(
        "echo",
        tuple(facts),
        ("Repeat after me, {said}.", "Say after me, {said}.", "Say the words, {said}."),
        ("Repeat the words, {said}.",),
        rule=True,
        carriers=False,
        weight=0.5,
    )


_IS = "the {kind} {side} {member} is {answer}"
# Not "is Q": after "is" a listener expects a number, a day or a thing, and a letter is soon misheard as one.
_COMES = "{side} {member} comes {answer}"

FAMILIES = (
    _neighbours("days", "day", DAYS, circular=True, two=True, answer_form=_IS),
    _neighbours("months", "month", MONTHS, circular=True, two=False, answer_form=_IS),
    _neighbours("letters", "letter", LETTERS, circular=False, two=False, answer_form=_COMES),
    places(),
    lists(),
    echo(),
)
