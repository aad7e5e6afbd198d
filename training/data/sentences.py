"""Sentences to speak and to write down: templates over the lexicon, and words in free order."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from training.data.lexicon import (
    ACTIONS,
    ADJECTIVES,
    ADVERBS,
    CATEGORIES,
    DAYS,
    MONTHS,
    NATURE,
    ORDINALS,
    PEOPLE,
    PLACES,
    TENS,
    THINGS,
    UNCOUNTED,
    UNITS,
    VERBS,
    number_words,
    plural,
    with_article,
)

ANIMALS = (*CATEGORIES["animal"], *CATEGORIES["bird"])
FOODS = (*CATEGORIES["fruit"], *CATEGORIES["vegetable"])
OBJECTS = tuple(word for word in (*THINGS, *FOODS, *CATEGORIES["tool"]) if word not in UNCOUNTED)
COLOURS = CATEGORIES["colour"]

TEMPLATES = (
    "The {adjective} {animal} is in the {place}.",
    "The {person} wants to {verb} a {adjective} {thing}.",
    "My {person} will {verb} {number} {things} {day}.",
    "There are {number} {things} on the {thing}.",
    "I can see {number} {colour} {animals} near the {place}.",
    "Please {verb} the {thing} {adverb}.",
    "The {thing} is {adjective}, but the {thing} is {adjective}.",
    "We {action} in the {place} every {weekday}.",
    "In {month} the {animals} {action} in the {place}.",
    "She has {number} {things} and {article_animal}.",
    "He likes {food} and {food}.",
    "Do you want {article_thing} or {article_thing}?",
    "Where is the {colour} {thing}?",
    "Can the {animal} {action} {adverb}?",
    "The {ordinal} {thing} is for my {person}.",
    "My {person} and your {person} {action} together.",
    "It is {adjective} and {adjective} in the {place} today.",
    "The {person} is not {adjective}, she is {adjective}.",
    "Give the {thing} to the {person}.",
    "I do not like the {adjective} {thing}.",
    "{Number} {animals} {action} near the {nature}.",
    "The {nature} is {adjective} on {weekday}.",
    "They {verb} the {things} in the {place}.",
    "Who has the {adjective} {thing}?",
    "You need {number} {foods} for the cake.",
    "My {animal} is {number} years old.",
    "The {animals} eat {foods} and {foods}.",
    "How many {things} are in your {place}?",
    "The {colour} {thing} costs {number} and the {colour} one {number}.",
    "Take the {thing}, the {thing} and the {thing}.",
)

_FIELD = re.compile(r"\{(\w+)\}")
_CHOICES: dict[str, Callable[[random.Random], str]] = {
    "adjective": lambda draw: draw.choice(ADJECTIVES),
    "animal": lambda draw: draw.choice(ANIMALS),
    "animals": lambda draw: plural(draw.choice(ANIMALS)),
    "article_animal": lambda draw: with_article(draw.choice(ANIMALS)),
    "thing": lambda draw: draw.choice(OBJECTS),
    "things": lambda draw: plural(draw.choice(OBJECTS)),
    "article_thing": lambda draw: with_article(draw.choice(OBJECTS)),
    "food": lambda draw: plural(draw.choice(FOODS)),
    "foods": lambda draw: plural(draw.choice(FOODS)),
    "person": lambda draw: draw.choice(PEOPLE),
    "place": lambda draw: draw.choice(PLACES),
    "verb": lambda draw: draw.choice(VERBS),
    "action": lambda draw: draw.choice(ACTIONS),
    "adverb": lambda draw: draw.choice(ADVERBS),
    "day": lambda draw: draw.choice(("today", "tomorrow", f"on {draw.choice(DAYS)}")),
    "weekday": lambda draw: draw.choice(DAYS),
    "month": lambda draw: draw.choice(MONTHS),
    "colour": lambda draw: draw.choice(COLOURS),
    "nature": lambda draw: draw.choice(NATURE),
    "ordinal": lambda draw: draw.choice(ORDINALS),
    "number": lambda draw: number_words(draw.randint(2, 20) if draw.random() < 0.7 else draw.randint(21, 100)),
    "Number": lambda draw: number_words(draw.randint(2, 99)).capitalize(),
}

_FREE_WORDS = tuple(
    sorted(
        {
            *UNITS, *TENS, *DAYS, *MONTHS, *THINGS, *PLACES, *NATURE, *PEOPLE, *ADJECTIVES, *VERBS, *ACTIONS, *ADVERBS,
            *ORDINALS, *(word for members in CATEGORIES.values() for word in members), *CATEGORIES,
        }
    )
)  # fmt: skip


def template_sentence(draw: random.Random) -> str:
    """One sentence of a template, filled by `draw`; at most about ten words."""
    return _FIELD.sub(lambda field: _CHOICES[field[1]](draw), draw.choice(TEMPLATES))


def free_sentence(draw: random.Random) -> str:
    """Three to seven words in any order: only the sound tells what they are, no grammar helps."""
    words = [draw.choice(_FREE_WORDS) for _ in range(draw.randint(3, 7))]
    text = " ".join(words)
    return f"{text[0].upper()}{text[1:]}."


def sentences(count: int, seed: int, free_share: float = 0.3) -> list[tuple[str, str]]:
    """`count` different (text, kind), kind "template" or "free"; the same for the same seed.

    A longer list begins with the shorter one.
    """
    draw = random.Random(seed)
    made: dict[str, str] = {}
    while len(made) < count:
        kind = "free" if draw.random() < free_share else "template"
        text = free_sentence(draw) if kind == "free" else template_sentence(draw)
        made.setdefault(text, kind)
    return list(made.items())
