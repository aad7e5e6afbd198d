"""Questions about numbers: sums, differences, products, order, comparison, counting."""

from __future__ import annotations

from itertools import permutations

from training.data.answers import WHOLE
from training.data.families import Fact, Family, sentence
from training.data.lexicon import number_words

_LARGEST_SUMMAND = 10
_LARGEST_FACTOR = 10
_LARGEST_MINUEND = 12
_LARGEST_IN_ORDER = 60
_LARGEST_COMPARED = 20


def _calculation(name: str, sign: str, pairs: list[tuple[int, int, int]], wordings: tuple[str, ...]) -> Family:
    """`pairs`: (first, second, result). The last wording is kept for the test."""
    facts = []
    for first, second, result in pairs:
        a, b, c = map(number_words, (first, second, result))
        facts.append(Fact(f"{a} {sign} {b}", sentence(f"{a} {sign} {b} is {c}"), (c,), {"a": a, "b": b}))
    return Family(name, tuple(facts), wordings[:-1], wordings[-1:], rule=True, weight=2.0)


def addition() -> Family:
    numbers = range(_LARGEST_SUMMAND + 1)
    return _calculation(
        "addition",
        "plus",
        [(a, b, a + b) for a in numbers for b in numbers],
        ("What is {a} plus {b}?", "How much is {a} plus {b}?", "Add {a} and {b}.", "How much do {a} and {b} make?"),
    )


def subtraction() -> Family:
    return _calculation(
        "subtraction",
        "minus",
        [(a, b, a - b) for a in range(_LARGEST_MINUEND + 1) for b in range(a + 1)],
        (
            "What is {a} minus {b}?",
            "How much is {a} minus {b}?",
            "Take {b} from {a}.",
            "How much does {a} minus {b} make?",
        ),
    )


def multiplication() -> Family:
    numbers = range(1, _LARGEST_FACTOR + 1)
    return _calculation(
        "multiplication",
        "times",
        [(a, b, a * b) for a in numbers for b in numbers],
        (
            "What is {a} times {b}?",
            "How much is {a} times {b}?",
            "Work out {a} times {b}.",
            "How much does {a} times {b} make?",
        ),
    )


def number_order() -> Family:
    facts = []
    for number in range(1, _LARGEST_IN_ORDER):
        for side, other in (("after", number + 1), ("before", number - 1)):
            n, answer = number_words(number), number_words(other)
            facts.append(
                Fact(f"{side} {n}", sentence(f"the number {side} {n} is {answer}"), (answer,), {"n": n, "side": side})
            )
    return Family(
        "number_order",
        tuple(facts),
        ("What number comes {side} {n}?", "Which number is {side} {n}?", "Say the number {side} {n}."),
        ("What is the number {side} {n}?",),
        rule=True,
    )


def number_comparison() -> Family:
    facts = []
    for a, b in permutations(range(_LARGEST_COMPARED + 1), 2):
        for which, result in (("bigger", max(a, b)), ("smaller", min(a, b))):
            slots = {"a": number_words(a), "b": number_words(b), "which": which}
            answer = number_words(result)
            facts.append(
                Fact(
                    f"{which} {slots['a']} {slots['b']}", sentence(f"the {which} number is {answer}"), (answer,), slots
                )
            )
    return Family(
        "number_comparison",
        tuple(facts),
        ("Which number is {which}, {a} or {b}?", "What is {which}, {a} or {b}?", "Say the {which} number, {a} or {b}."),
        ("Which is the {which} number, {a} or {b}?",),
        rule=True,
    )


def counting() -> Family:
    facts = []
    for start in range(1, 18):
        for length in (3, 4, 5):
            numbers = [number_words(n) for n in range(start, start + length)]
            slots = {"a": numbers[0], "b": numbers[-1]}
            facts.append(
                Fact(
                    f"{numbers[0]} to {numbers[-1]}", sentence(", ".join(numbers)), (WHOLE + " ".join(numbers),), slots
                )
            )
    return Family(
        "counting",
        tuple(facts),
        ("Count from {a} to {b}.", "How do you count from {a} to {b}?"),
        ("Say the numbers from {a} to {b}.",),
        rule=True,
    )


FAMILIES = (addition(), subtraction(), multiplication(), number_order(), number_comparison(), counting())
