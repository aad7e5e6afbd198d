"""The words of the domain, by kind; every text of the training data is made of these words only.

Words that sound alike (see/sea, red/read) are left out as far as English allows: no ear can tell them apart.
"""

from __future__ import annotations


def words(text: str) -> tuple[str, ...]:
    """The words of a list written as one text."""
    return tuple(text.split())


UNITS = words(
    """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen
    """
)
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
ORDINALS = words("first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = words("January February March April May June July August September October November December")
LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")

#: Category -> its members. The category's name is itself a word of the lexicon.
CATEGORIES: dict[str, tuple[str, ...]] = {
    "animal": words("dog cat horse cow pig sheep lion tiger monkey rabbit mouse elephant"),
    "bird": ("duck", "chicken", "eagle"),
    "fruit": ("apple", "banana", "orange", "lemon", "cherry", "peach"),
    "vegetable": ("potato", "carrot", "onion", "cabbage"),
    "colour": ("red", "green", "yellow", "white", "black", "brown", "purple", "pink"),
    "drink": ("water", "milk", "coffee", "juice"),
    "vehicle": ("car", "bus", "train", "bicycle", "truck", "boat"),
    "tool": ("hammer", "saw", "shovel"),
    "building": ("house", "school", "hospital", "castle", "church"),
    "instrument": ("piano", "guitar", "violin", "drum"),
    "country": ("France", "Italy", "Spain", "Japan", "Canada"),
    "city": ("Paris", "Rome", "London", "Madrid", "Berlin"),
    "sport": ("football", "tennis", "hockey"),
    "season": ("spring", "summer", "autumn", "winter"),
    "number": ("seven", "twelve"),
    "day": ("Monday", "Friday"),
    "month": ("April", "June"),
}
#: Nouns outside the categories above.
THINGS = words(
    """
    table chair door window bed lamp book paper pen letter key bag box cup glass plate spoon knife bread butter
    cheese egg soup sugar salt rice cake hat shirt coat shoe ring clock phone radio picture ball toy tree flower
    grass leaf stone
    """
)
PLACES = words(
    """
    garden kitchen market park street river lake mountain village island forest beach farm office shop station
    library room
    """
)
NATURE = words("sky snow rain wind cloud moon star fire gold ice grape honey lime")
PEOPLE = words(
    """
    mother father brother sister friend teacher doctor farmer baker king queen boy girl child man woman baby
    """
)
BODY = ("hand", "foot", "arm", "leg", "finger", "nose", "tooth")

#: Pairs of opposites; each word is asked for both ways.
OPPOSITES: tuple[tuple[str, str], ...] = (
    ("hot", "cold"), ("big", "small"), ("tall", "short"), ("fast", "slow"), ("happy", "sad"), ("old", "young"),
    ("good", "bad"), ("hard", "soft"), ("early", "late"), ("open", "closed"), ("full", "empty"), ("clean", "dirty"),
    ("dark", "bright"), ("dry", "wet"), ("rich", "poor"), ("loud", "quiet"), ("up", "down"), ("left", "right"),
    ("in", "out"), ("yes", "no"), ("day", "night"), ("start", "stop"), ("give", "take"), ("push", "pull"),
    ("always", "never"), ("near", "far"), ("thick", "thin"), ("sweet", "sour"), ("wide", "narrow"),
    ("cheap", "expensive"), ("easy", "difficult"), ("true", "false"), ("love", "hate"), ("win", "lose"),
    ("sit", "stand"), ("laugh", "cry"), ("hello", "goodbye"), ("before", "after"), ("high", "low"),
)  # fmt: skip
ADJECTIVES = words(
    """
    hot cold big small tall short fast slow happy sad old young good bad hard soft full empty clean dirty dark
    bright dry wet rich poor loud quiet thick thin sweet strong wide cheap expensive nice heavy light beautiful
    round
    """
)
IRREGULAR_PLURALS = {
    "mouse": "mice", "sheep": "sheep", "knife": "knives", "leaf": "leaves", "foot": "feet", "tooth": "teeth",
    "man": "men", "woman": "women", "child": "children",
}  # fmt: skip
#: Nouns without an article (and colours, when they are spoken of).
UNCOUNTED = frozenset(
    words(
        """
    water milk coffee juice bread butter cheese soup sugar salt rice grass paper football tennis hockey red green
    yellow white black brown purple pink spring summer autumn winter
    """
    )
)
VERBS = words(
    """
    see find buy sell bring carry clean open close want like need have hold lose paint wash watch draw make keep
    """
)
ACTIONS = words("run walk swim sing dance play work sleep eat drink talk wait laugh cook learn travel fly")
ADVERBS = words("today tomorrow now again slowly quickly often always never together")


def number_words(value: int) -> str:
    """0 .. 100 in words, without a hyphen: 42 -> "forty two". Raises ValueError outside."""
    if not 0 <= value <= 100:
        raise ValueError(f"{value} is not from 0 to 100")
    if value < 20:
        return UNITS[value]
    if value == 100:
        return "one hundred"
    tens, units = divmod(value, 10)
    return TENS[tens - 2] + (f" {UNITS[units]}" if units else "")


def plural(noun: str) -> str:
    """The plural of a noun of the lexicon."""
    if noun in IRREGULAR_PLURALS:
        return IRREGULAR_PLURALS[noun]
    if noun.endswith(("s", "x", "ch", "sh")) or noun in ("potato",):
        return f"{noun}es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}s"


def with_article(noun: str) -> str:
    """ "a dog", "an apple", "milk"."""
    if noun in UNCOUNTED or noun[0].isupper():
        return noun
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"
