"""All families of questions, and their split: which (fact, wording) pairs, wordings and facts training never sees."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from training.data import questions_life, questions_numbers, questions_order, questions_words
from training.data.families import Family, Question, questions
from training.data.settings import DataConfig

FAMILIES: tuple[Family, ...] = (
    *questions_numbers.FAMILIES,
    *questions_order.FAMILIES,
    *questions_words.FAMILIES,
    *questions_life.FAMILIES,
)


@dataclass(frozen=True, slots=True)
class QuestionPool:
    """The questions of one family that one split may ask, shuffled. `held_out`: "" in the train split."""

    family: Family
    held_out: str
    questions: tuple[Question, ...]


def split_questions(config: DataConfig) -> tuple[list[QuestionPool], list[QuestionPool]]:
    """(train, test) pools. No text is in both.

    A test question is held out as "fact" (a rule family's fact that is never asked in training), "phrasing" (its
    wording or carrier is never used) or "question" (fact and wording are both known, but not together).
    """
    train: list[QuestionPool] = []
    test: list[QuestionPool] = []
    for family in FAMILIES:
        kinds: dict[str, dict[str, Question]] = {"": {}, "fact": {}, "phrasing": {}, "question": {}}
        kept_facts = _held_out_facts(family, config)
        for question in questions(family):
            kinds[_held_out(question, kept_facts, config)][question.text] = question
        for held_out, found in kinds.items():
            # Two facts of lists or echo may meet in one text; it belongs to training then.
            texts = [text for text in found if not held_out or text not in kinds[""]]
            random.Random(f"{config.seed} {family.name} {held_out}").shuffle(texts)
            pool = QuestionPool(family, held_out, tuple(found[text] for text in texts))
            if texts:
                (test if held_out else train).append(pool)
    return train, test


def draw_questions(pools: list[QuestionPool], count: int, seed: str) -> Iterator[Question]:
    """`count` questions, families in proportion to their weight times the square root of their facts.

    Each pool is gone through in its order, again from the start when it ends (the sound will differ then).
    """
    draw = random.Random(seed)
    pools_of = Counter(pool.family.name for pool in pools)
    weights = [p.family.weight * len(p.family.facts) ** 0.5 / pools_of[p.family.name] for p in pools]
    places = [0] * len(pools)
    for index in draw.choices(range(len(pools)), weights, k=count):
        pool = pools[index]
        yield pool.questions[places[index] % len(pool.questions)]
        places[index] += 1


def _held_out(question: Question, kept_facts: set[str], config: DataConfig) -> str:
    if question.fact.key in kept_facts:
        return "fact"
    if question.unseen_phrasing:
        return "phrasing"
    kept = random.Random(f"{config.seed} {question.family} {question.text}").random() < config.held_out_questions
    # Families without carriers have too few wordings of a fact to keep one back.
    family = next(family for family in FAMILIES if family.name == question.family)
    return "question" if kept and family.carriers else ""


def _held_out_facts(family: Family, config: DataConfig) -> set[str]:
    if not family.rule:
        return set()
    keys = sorted({fact.key for fact in family.facts})
    return set(random.Random(f"{config.seed} {family.name}").sample(keys, round(config.held_out_facts * len(keys))))
