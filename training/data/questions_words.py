"""Questions about words and things: opposites, categories, colours, plurals, spelling, sizes, yes or no."""

from __future__ import annotations

from itertools import permutations

from training.data.families import Fact, Family, sentence
from training.data.lexicon import (
    BODY,
    CATEGORIES,
    DAYS,
    OPPOSITES,
    PEOPLE,
    PLACES,
    THINGS,
    UNCOUNTED,
    number_words,
    plural,
    with_article,
    words,
)

COLOUR_OF = {
    "sky": "blue", "snow": "white", "milk": "white", "grass": "green", "leaf": "green", "lime": "green",
    "banana": "yellow", "lemon": "yellow", "sun": "yellow", "cherry": "red", "fire": "red", "coffee": "brown",
    "orange": "orange", "carrot": "orange", "night": "black", "pig": "pink", "sheep": "white", "frog": "green",
    "salt": "white", "grape": "purple", "elephant": "grey", "potato": "brown", "honey": "yellow", "cabbage": "green",
}  # fmt: skip
_SIZES = ("ant", "mouse", "duck", "cat", "dog", "sheep", "lion", "horse", "elephant", "bus", "house", "castle")
SPELLED = words(
    """
    cat dog cow pig hen duck lion frog bus car key bag box cup hat shirt coat shoe ring toy tree leaf bed door book
    pen egg salt cake rice red green black white brown pink one two three four five six seven nine ten hot cold big
    small tall fast slow happy sad old young good bad sun moon star rain snow wind fire milk water apple bread house
    hand foot arm leg nose king queen boy girl man baby run walk sing play eat drink
    """
)


def opposites() -> Family:
    facts = [
        Fact(word, sentence(f"the opposite of {word} is {other}"), (other,), {"word": word})
        for pair in OPPOSITES
        for word, other in (pair, pair[::-1])
    ]
    return Family(
        "opposites",
        tuple(facts),
        ("What is the opposite of {word}?", "Which word is the opposite of {word}?", "Give me the opposite of {word}."),
        ("What word is the opposite of {word}?",),
        weight=1.5,
    )


def categories() -> Family:
    facts = [
        Fact(
            member,
            f"{_capital(with_article(member))} is {with_article(category)}.",
            (category,),
            {"member": with_article(member)},
        )
        for category, members in CATEGORIES.items()
        if category not in ("number", "day", "month")
        for member in members
    ]
    return Family(
        "categories",
        tuple(facts),
        ("What kind of thing is {member}?", "What is {member}?", "Say what kind of thing {member} is."),
        ("What sort of thing is {member}?",),
        weight=1.5,
    )


def colours() -> Family:
    facts = []
    for thing, colour in COLOUR_OF.items():
        name = f"the {thing}" if thing in ("sky", "sun", "night") else with_article(thing)
        facts.append(Fact(thing, f"{_capital(name)} is {colour}.", (colour,), {"thing": name}))
    return Family(
        "colours",
        tuple(facts),
        (
            "What colour is {thing}?",
            "Which colour is {thing}?",
            "Say the colour of {thing}.",
            "Name the colour of {thing}.",
        ),
        ("What is the colour of {thing}?",),
    )


def plurals() -> Family:
    members = (word for kind in ("animal", "fruit", "vehicle") for word in CATEGORIES[kind])
    nouns = dict.fromkeys(word for word in (*members, *THINGS, *PLACES, *PEOPLE, *BODY) if word not in UNCOUNTED)
    facts = [Fact(noun, f"One {noun}, two {plural(noun)}.", (plural(noun),), {"noun": noun}) for noun in nouns]
    return Family(
        "plurals",
        tuple(facts),
        ("What is the plural of {noun}?", "Say the plural of {noun}.", "Which word is the plural of {noun}?"),
        ("Give me the plural of {noun}.",),
    )


def spelling() -> Family:
    facts = []
    for word in dict.fromkeys(SPELLED):
        letters = list(word.upper())
        facts.append(
            Fact(word, f"{_capital(word)} is spelled {', '.join(letters)}.", (" ".join(letters),), {"word": word})
        )
    return Family(
        "spelling",
        tuple(facts),
        ("How do you spell {word}?", "Spell the word {word}.", "How is {word} spelled?"),
        ("How do you spell the word {word}?",),
    )


def sizes() -> Family:
    facts = []
    for a, b in permutations(_SIZES, 2):
        for which, pick in (("bigger", max), ("smaller", min)):
            winner = pick((a, b), key=_SIZES.index)
            first, second = with_article(a), with_article(b)
            facts.append(
                Fact(
                    f"{which} {a} {b}",
                    f"The {which} one is {with_article(winner)}.",
                    (winner,),
                    {"a": first, "b": second, "which": which},
                )
            )
    return Family(
        "sizes",
        tuple(facts),
        ("Which is {which}, {a} or {b}?", "What is {which}, {a} or {b}?", "Say which is {which}, {a} or {b}."),
        ("Which one is {which}, {a} or {b}?",),
        rule=True,
    )


def yes_or_no() -> Family:
    """ "Is a dog an animal?", "Is seven more than three?": one word to say."""
    facts = []
    kinds = [category for category in CATEGORIES if category not in ("number", "day", "month", "season")]
    members = [(member, kind) for kind in kinds for member in CATEGORIES[kind]]
    for index, (member, kind) in enumerate(members):
        for other in (kind, kinds[(kinds.index(kind) + 1 + index % (len(kinds) - 1)) % len(kinds)]):
            facts.append(_yes_no(f"{with_article(member)} {with_article(other)}", other == kind))
    for a in range(21):
        for b in (a - 5, a - 2, a - 1, a + 1, a + 3, a + 7):
            if 0 <= b <= 20:
                facts.append(_yes_no(f"{number_words(a)} more than {number_words(b)}", a > b))
    for index, day in enumerate(DAYS):
        facts.append(_yes_no(f"{day} a day", True))
        facts.append(_yes_no(f"{day} a month", False))
        facts.append(_yes_no(f"{DAYS[(index + 1) % 7]} after {day}", True))
        facts.append(_yes_no(f"{DAYS[(index + 3) % 7]} after {day}", False))
    facts += [_yes_no(f"the {thing} {colour}", True) for thing, colour in (("sky", "blue"), ("sun", "yellow"))]
    facts += [
        _yes_no(f"{thing} {colour}", COLOUR_OF[thing] == colour)
        for thing in ("snow", "milk", "grass", "salt", "coffee")
        for colour in ("white", "green", "brown")
    ]
    return Family(
        "yes_or_no",
        tuple(facts),
        (
            "Is {claim}?",
            "Is it true, is {claim}?",
            "Tell me, is {claim}?",
            "Yes or no, is {claim}?",
            "Say, is {claim}?",
        ),
        ("Say yes or no, is {claim}?",),
        carriers=False,
        weight=1.5,
    )


def _yes_no(claim: str, true: bool) -> Fact:
    answer = "yes" if true else "no"
    return Fact(claim, f"{answer.capitalize()}.", (answer,), {"claim": claim})


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


FAMILIES = (opposites(), categories(), colours(), plurals(), spelling(), sizes(), yes_or_no())
