"""Dialogues of two to five turns: what was said before has to be kept in mind, across other topics too.

A dialogue is made of threads. Some go on at once ("And plus four?", "Spell it.", "No, I mean ..."), some state
something that is asked for later ("What is my name?"), the rest are single questions of the families.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from training.data.families import Question, sentence
from training.data.lexicon import CATEGORIES, DAYS, MONTHS, OPPOSITES, PLACES, number_words, plural, with_article
from training.data.questions_words import COLOUR_OF, SPELLED

NAMES = ("Anna", "Ben", "Tom", "Mary", "Peter", "Lisa", "David", "Sarah", "Paul", "Emma", "Jack", "Kate", "Sam", "Lucy")
MOST_TURNS = 5
#: A user's turn without words: the sound of a quiet room.
SILENCE = ""
NOTHING_HEARD = "I did not hear anything."
_REPEAT = ("Say that again.", "Can you say that again?", "Please say it again.")
_NUMBERS = range(11)

Draw = random.Random


@dataclass(frozen=True, slots=True)
class Exchange:
    """A user's turn and its answer; `accepted` as in `families.Fact`. `memory`: it needs the turns before."""

    asked: str
    answer: str
    accepted: tuple[str, ...]
    memory: bool = False


@dataclass(frozen=True, slots=True)
class Thread:
    """Exchanges on one topic. `key`: what it is about, for the split. `gap`: other topics may come between them."""

    key: str
    exchanges: tuple[Exchange, ...]
    gap: bool = False

    @property
    def follow_ups(self) -> set[tuple[str, str]]:
        """(answer, next answer) where nothing comes between: what is gone on from and to, however it is asked."""
        return set() if self.gap else {(a.answer, b.answer) for a, b in itertools.pairwise(self.exchanges)}


def dialogues(
    count: int, seed: str, single: Iterator[Question], may_use: Callable[[Thread], bool], spoken: bool
) -> Iterator[tuple[Exchange, ...]]:
    """`count` dialogues, the same for the same arguments.

    Args:
        single: questions for the turns between, as many as are needed.
        may_use: whether a thread belongs to the split that is made; others are drawn again.
        spoken: whether the users speak: then a turn may be silent.
    """
    draw = Draw(seed)
    for _ in range(count):
        yield _dialogue(draw, single, may_use, spoken)


def _dialogue(
    draw: Draw, single: Iterator[Question], may_use: Callable[[Thread], bool], spoken: bool
) -> tuple[Exchange, ...]:
    turns = draw.randint(2, MOST_TURNS)
    first = _thread(draw, may_use, gap=draw.random() < 0.5)
    made = list(first.exchanges)
    if not first.gap and turns - len(made) >= 2 and draw.random() < 0.5:
        second = _thread(draw, may_use, gap=True)
        made = [second.exchanges[0], *made, second.exchanges[1]]
    while len(made) < turns:
        # Of a thread that goes on at once, nothing may come between its turns.
        places = [at for at in range(len(made) + 1) if first.gap or not (0 < at < len(made) and made[at].memory)]
        made.insert(draw.choice(places), _between(draw, single, spoken))
    made = made[:MOST_TURNS]
    if len(made) < MOST_TURNS and draw.random() < 0.15:
        last = made[-1]
        made.append(Exchange(draw.choice(_REPEAT), last.answer, last.accepted, memory=True))
    return tuple(made)


def _between(draw: Draw, single: Iterator[Question], spoken: bool) -> Exchange:
    if spoken and draw.random() < 0.12:
        return Exchange(SILENCE, NOTHING_HEARD, ("hear anything",))
    question = next(single)
    return Exchange(question.text, question.fact.answer, question.fact.accepted)


def _thread(draw: Draw, may_use: Callable[[Thread], bool], gap: bool) -> Thread:
    makers = _STATED if gap else _CONTINUED
    while True:
        thread = draw.choice(makers)(draw)
        if thread is not None and may_use(thread):
            return thread


def _sums(draw: Draw) -> Thread | None:
    """A sum, and one or two more numbers to add to it or to take from it."""
    a, b = draw.choice(_NUMBERS), draw.choice(_NUMBERS)
    value = a + b
    if value > max(_NUMBERS):
        return None
    asked = draw.choice(("What is {a} plus {b}?", "How much is {a} plus {b}?", "Add {a} and {b}."))
    exchanges = [_number(asked.format(a=number_words(a), b=number_words(b)), a, "plus", b, value, memory=False)]
    key = [f"{a} plus {b}"]
    for _ in range(draw.randint(1, 2)):
        sign = draw.choice(("plus", "minus"))
        operand = draw.choice(range((max(_NUMBERS) - value if sign == "plus" else value) + 1))
        result = value + operand if sign == "plus" else value - operand
        word = number_words(operand)
        wordings = (f"And plus {word}?", f"Add {word} to it.", f"Now add {word}.")
        if sign == "minus":
            wordings = (f"And minus {word}?", f"Take {word} from it.", f"Now take {word} from it.")
        exchanges.append(_number(draw.choice(wordings), value, sign, operand, result, memory=True))
        key.append(f"{sign} {operand}")
        value = result
    return Thread(" ".join(key), tuple(exchanges))


def _number(asked: str, a: int, sign: str, b: int, result: int, memory: bool) -> Exchange:
    words = number_words(result)
    return Exchange(asked, sentence(f"{number_words(a)} {sign} {number_words(b)} is {words}"), (words,), memory)


def _opposite_spelled(draw: Draw) -> Thread | None:
    word, other = draw.choice(draw.choice((OPPOSITES, tuple(pair[::-1] for pair in OPPOSITES))))
    if other not in SPELLED:
        return None
    asked = draw.choice(("What is the opposite of {}?", "Which word is the opposite of {}?")).format(word)
    letters = list(other.upper())
    return Thread(
        f"spell the opposite of {word}",
        (
            Exchange(asked, sentence(f"the opposite of {word} is {other}"), (other,)),
            Exchange(
                draw.choice(("Spell it.", "How do you spell it?", "Please spell that.")),
                sentence(f"{other} is spelled {', '.join(letters)}"),
                (" ".join(letters),),
                memory=True,
            ),
        ),
    )


def _days(draw: Draw) -> Thread:
    """A day or a month, and one or two more after it or before it."""
    kind, sequence = draw.choice((("day", DAYS), ("month", MONTHS)))
    at, key, exchanges = draw.randrange(len(sequence)), [], list[Exchange]()
    for number in range(draw.randint(2, 3)):
        side, step = draw.choice((("after", 1), ("before", -1)))
        member, at = sequence[at], (at + step) % len(sequence)
        asked = f"And {side} that?" if number else f"Which {kind} comes {side} {member}?"
        answer = f"The {kind} {side} {member} is {sequence[at]}."
        exchanges.append(Exchange(asked, answer, (sequence[at],), memory=number > 0))
        key.append(f"{side} {member}")
    return Thread(" ".join(key), tuple(exchanges))


def _kind_and_more(draw: Draw) -> Thread | None:
    """What a thing is, then its colour or its plural, by "it"."""
    category = draw.choice(("animal", "fruit", "vegetable", "vehicle"))
    thing = draw.choice(CATEGORIES[category])
    name = with_article(thing)
    kind = Exchange(
        f"What kind of thing is {name}?",
        f"{name[0].upper()}{name[1:]} is {with_article(category)}.",
        (category,),
    )
    if draw.random() < 0.5:
        asked = draw.choice(("And what is the plural of it?", "And two of them?", "Say the plural of it."))
        more = Exchange(asked, f"One {thing}, two {plural(thing)}.", (plural(thing),), memory=True)
    elif thing in COLOUR_OF:
        asked, colour = draw.choice(("And what colour is it?", "Which colour is it?")), COLOUR_OF[thing]
        more = Exchange(asked, f"{name[0].upper()}{name[1:]} is {colour}.", (colour,), memory=True)
    else:
        return None
    return Thread(f"{thing} {more.accepted[0]}", (kind, more))


def _corrected(draw: Draw) -> Thread:
    """A sum, and "No, I mean ..." with one of its numbers changed: the other one has to be kept in mind."""
    a, (b, c) = draw.choice(_NUMBERS), draw.sample(_NUMBERS, 2)
    words = number_words(c)
    first = _number(f"What is {number_words(a)} plus {number_words(b)}?", a, "plus", b, a + b, memory=False)
    asked = draw.choice((f"No, I mean plus {words}.", f"Sorry, I mean plus {words}.", f"No, plus {words}, please."))
    return Thread(f"{a} plus {b} not {c}", (first, _number(asked, a, "plus", c, a + c, memory=True)))


def _name(draw: Draw) -> Thread:
    name = draw.choice(NAMES)
    said = draw.choice(("My name is {}.", "I am {}.", "Hello, my name is {}."))
    asked = draw.choice(("What is my name?", "What was my name?", "Say my name.", "Do you know my name?"))
    return _stated(said.format(name), f"Hello {name}, nice to meet you.", asked, "Your name is {}.", name)


def _have(draw: Draw) -> Thread:
    what = with_article(draw.choice(CATEGORIES[draw.choice(("animal", "vehicle", "instrument", "fruit"))]))
    said = draw.choice(("I have {}.", "I have {} at home."))
    asked = draw.choice(("What do I have?", "What did I say, what do I have?"))
    return _stated(said.format(what), f"You have {what}, that is nice.", asked, "You have {}.", what)


def _colour(draw: Draw) -> Thread:
    colour = draw.choice(CATEGORIES["colour"])
    said = draw.choice(("I like {}.", "My colour is {}."))
    asked = draw.choice(("What is my colour?", "Which colour do I like?"))
    return _stated(said.format(colour), f"{colour.capitalize()} is a nice colour.", asked, "Your colour is {}.", colour)


def _place(draw: Draw) -> Thread:
    place = f"the {draw.choice(PLACES)}"
    asked = draw.choice(("Where am I?", "In what place am I?"))
    return _stated(f"I am at {place}.", f"You are at {place}, very good.", asked, "You are at {}.", place)


def _stated(said: str, noted: str, asked: str, answer: str, what: str) -> Thread:
    """Something stated, and asked for later."""
    tail = " ".join(noted.rstrip(".").split()[-2:])
    return Thread(
        f"{said} {asked}",
        (Exchange(said, noted, (tail,)), Exchange(asked, answer.format(what), (what,), memory=True)),
        gap=True,
    )


_CONTINUED = (_sums, _sums, _opposite_spelled, _days, _kind_and_more, _corrected)
_STATED = (_name, _name, _have, _colour, _place)
