"""Simple facts of life, greetings, and questions about the speaker itself."""

from __future__ import annotations

from training.data.families import Fact, Family, sentence
from training.data.lexicon import number_words, with_article

_LEGS = {"dog": 4, "cat": 4, "horse": 4, "cow": 4, "bird": 2, "duck": 2, "chicken": 2, "man": 2, "ant": 6, "table": 4}
_PARTS = (  # whole, part, number
    ("a week", "days", 7), ("a year", "months", 12), ("a day", "hours", 24), ("an hour", "minutes", 60),
    ("a minute", "seconds", 60), ("a hand", "fingers", 5), ("a year", "seasons", 4), ("a car", "wheels", 4),
    ("a bicycle", "wheels", 2), ("the alphabet", "letters", 26),
)  # fmt: skip
_CAPITALS = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "England": "London", "Germany": "Berlin"}
_GIVES = {"cow": "milk", "chicken": "eggs", "sheep": "wool", "bee": "honey", "apple tree": "apples"}
_LIVES = {
    "fish": "in the water", "bird": "in a nest", "bee": "in a hive", "king": "in a castle", "lion": "in the wild",
    "horse": "in a stable", "doctor": "in a house",
}  # fmt: skip
_WORKS = {
    "teacher": "in a school", "doctor": "in a hospital", "farmer": "on a farm", "baker": "in a bakery",
    "queen": "in a castle", "cook": "in a kitchen",
}  # fmt: skip
_USES = {
    "write": "a pen", "cut": "a knife", "eat soup": "a spoon", "open a door": "a key", "call a friend": "a phone",
    "see in the dark": "a lamp", "know the time": "a clock", "drink": "a cup", "sleep": "a bed", "sit": "a chair",
    "hear": "an ear", "smell": "a nose",
}  # fmt: skip
#: question, answer, key words
_MORE = (
    ("What falls from the sky when it is cold?", "That is snow.", "snow"),
    ("What falls from the clouds and makes us wet?", "That is rain.", "rain"),
    ("What is frozen water?", "Frozen water is ice.", "ice"),
    ("What do we see in the sky at night?", "At night we see the moon.", "moon"),
    ("What shines in the sky in the day?", "In the day we see the sun.", "sun"),
    ("What season is cold?", "The cold season is winter.", "winter"),
    ("What season is hot?", "The hot season is summer.", "summer"),
    ("What season comes after winter?", "After winter comes spring.", "spring"),
    ("What season comes after summer?", "After summer comes autumn.", "autumn"),
    ("Who is the mother of a child?", "That is a woman.", "woman"),
    ("What do cats like to eat?", "Cats like to eat fish.", "fish"),
    ("What does a rabbit like to eat?", "A rabbit likes to eat carrots.", "carrots"),
    ("What do we make from milk?", "From milk we make cheese.", "cheese"),
    ("What do we put on bread?", "On bread we put butter.", "butter"),
    ("What makes tea sweet?", "That is sugar.", "sugar"),
    ("What language do they speak in France?", "In France they speak French.", "french"),
    ("What language do they speak in Italy?", "In Italy they speak Italian.", "italian"),
    ("What language do they speak in Spain?", "In Spain they speak Spanish.", "spanish"),
    ("What language do they speak in England?", "In England they speak English.", "english"),
)
_GREETINGS = (  # what is said (one way to a row), answer, key words
    (("Hello.", "Hello there."), "Hello, nice to meet you.", "nice to meet you"),
    (("Good morning.", "Good morning to you."), "Good morning to you.", "good morning to you"),
    (("Good evening.", "Good evening to you."), "Good evening to you.", "good evening to you"),
    (("Good night.", "Good night to you."), "Good night, sleep well.", "sleep well"),
    (("How are you?", "How are you today?"), "I am fine, thank you.", "thank you"),
    (("Thank you.", "Thank you very much."), "You are welcome.", "welcome"),
    (("Goodbye.", "Goodbye, my friend."), "Goodbye, see you soon.", "soon"),
    (("Nice to meet you.", "It is nice to meet you."), "I am happy to meet you.", "happy to meet you"),
    (("I am happy today.", "I am very happy."), "That is very good.", "very good"),
    (("I am sad today.", "I am very sad."), "I am sorry to hear that.", "hear that"),
    (("Please help me.", "Can you help me?"), "Yes, what can I do?", "can i do"),
    (("Welcome.", "Welcome to my house."), "Thank you, my friend.", "my friend"),
)
_SELF = (
    (("Who are you?", "Please tell me who you are."), "I am Luke, your voice friend.", "your voice friend"),
    (("What is your name?", "Tell me your name."), "My name is Luke.", "luke"),
    (("What can you do?", "Tell me what you can do."), "I can hear, think and speak.", "hear think and speak"),
    (("Are you a man or a machine?", "What kind of thing are you?"), "I am a machine.", "a machine"),
    (("How old are you?", "Tell me how old you are."), "I am very young.", "very young"),
    (("Where do you live?", "Tell me where you live."), "I live in a computer.", "in a computer"),
    (("What do you like?", "Tell me what you like."), "I like your questions.", "your questions"),
    (("Can you hear me?", "Do you hear me?"), "Yes, I can hear you.", "hear you"),
    (("Can you speak?", "Do you speak?"), "Yes, I can speak.", "can speak"),
    (("Can you see me?", "Do you see me?"), "No, I can not see.", "not see"),
    (("Do you eat?", "What do you eat?"), "No, I do not eat.", "not eat"),
    (("Who is your teacher?", "Who was your teacher?"), "My teacher is a computer voice.", "computer voice"),
)


def quantities() -> Family:
    """How many parts a whole has."""
    counted = [*_PARTS, *((with_article(animal), "legs", number) for animal, number in _LEGS.items())]
    facts = [
        Fact(
            f"{part} of {whole}",
            sentence(f"{whole} has {number_words(number)} {part}"),
            (f"{number_words(number)} {part}",),
            {"whole": whole, "part": part},
        )
        for whole, part, number in counted
    ]
    return Family(
        "quantities",
        tuple(facts),
        ("How many {part} does {whole} have?", "How many {part} has {whole}?", "Say how many {part} {whole} has."),
        ("What number of {part} does {whole} have?",),
    )


def simple_facts() -> Family:
    facts = []
    for country, city in _CAPITALS.items():
        for question in (f"What is the capital of {country}?", f"Which city is the capital of {country}?"):
            facts.append(
                Fact(f"capital of {country}", f"The capital of {country} is {city}.", (city,), {"q": question})
            )
    for giver, gift in _GIVES.items():
        whole = with_article(giver)
        for question in (f"What does {whole} give us?", f"What do we get from {whole}?"):
            facts.append(Fact(f"gift of {giver}", f"{sentence(whole)[:-1]} gives us {gift}.", (gift,), {"q": question}))
    for who, place in {**_LIVES, **_WORKS}.items():
        verb = "work" if who in _WORKS else "live"
        whole = with_article(who)
        for question in (f"Where does {whole} {verb}?", f"In what place does {whole} {verb}?"):
            facts.append(Fact(f"{who} {verb}", f"{sentence(whole)[:-1]} {verb}s {place}.", (place,), {"q": question}))
    for use, tool in _USES.items():
        for question in (f"What do you need to {use}?", f"What do we need to {use}?"):
            facts.append(Fact(f"to {use}", f"To {use} you need {tool}.", (tool,), {"q": question}))
    facts += [Fact(question, answer, (key,), {"q": question}) for question, answer, key in _MORE]
    return Family("simple_facts", tuple(facts), ("{q}",), weight=1.5)


def greetings() -> Family:
    return _said("greetings", _GREETINGS)


def who_are_you() -> Family:
    return _said("who_are_you", _SELF)


def _said(name: str, rows: tuple[tuple[tuple[str, ...], str, str], ...]) -> Family:
    """Fixed sentences and their answers; too few to keep any from training."""
    facts = [Fact(said[0], answer, (key,), {"said": words}) for said, answer, key in rows for words in said]
    return Family(name, tuple(facts), ("{said}",), carriers=False, weight=0.7)


FAMILIES = (quantities(), simple_facts(), greetings(), who_are_you())
