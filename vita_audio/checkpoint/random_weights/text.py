"""A small English text, generated from word lists, on which the random-weight checkpoint's tokenizer is trained."""

from __future__ import annotations

import random
from collections.abc import Iterator


def _words(text: str) -> list[str]:
    return text.split()


NAMES = _words(
    """
    Anna Ben Clara David Emma Frank Grace Henry Ida Jack Kate Leo Mary Nora Oscar Paul Ruth Sam Tom Victor
    """
)
PLACES = _words(
    """
    airport bakery beach bridge café castle church cinema city clinic factory farm field forest garden harbour
    hospital hotel island kitchen lake library market mountain museum office park pharmacy restaurant river road
    school shop stadium station street theatre tower town university valley village
    """
)
THINGS = _words(
    """
    answer apple bag ball bicycle bird boat book bottle bread breakfast bus butter cake camera candle car card cat
    chair cheese clock cloud coat coffee computer cup dinner dog door dress egg engine fire fish flower fruit game
    glass hat horse house juice key lamp letter lunch machine map meal meat message milk mirror money moon music
    newspaper number orange paper pen phone picture plane plant plate potato present question radio rain recipe rice
    ring room salt sandwich shirt shoe snow soap song soup spoon star stone story sugar sun table tea telephone
    ticket tomato train tree umbrella vegetable voice wall watch water weather wheel wind window wine word
    """
)
ADJECTIVES = _words(
    """
    angry bad beautiful big black blue bright broken brown careful cheap clean clear cold cool dark deep different
    dirty dry early easy empty expensive famous fast fine free fresh friendly full funny good great green happy hard
    heavy high hot hungry important interesting kind large late lazy light little long loud low lucky modern narrow
    new nice noisy old open perfect polite poor popular possible quick quiet ready red rich round sad safe sharp
    short simple slow small soft special strange strong sunny sweet tall terrible thick thin tired ugly useful warm
    weak wet white wide wild wonderful wrong yellow young
    """
)
VERBS = _words(
    """
    answer ask bring build buy call carry catch change clean close cook count cut draw drink drive drop eat explain
    feel fill find finish fix follow forget get give hear help hide hold keep know learn leave like listen look lose
    love make meet move need open order paint pay play prepare push put reach read remember repair repeat ride run
    save say see sell send show sing sit sleep smell speak stand start stop study take talk taste teach tell think
    throw touch translate travel try turn understand use visit wait walk want wash wear win work write
    """
)
NUMBERS = _words(
    """
    one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million
    """
)
TIMES = _words(
    """
    today tomorrow yesterday tonight now soon later always never often sometimes Monday Tuesday Wednesday Thursday
    Friday Saturday Sunday January February March April May June July August September October November December
    morning afternoon evening night spring summer autumn winter week month year minute hour second
    """
)

PEOPLE = _words(
    """
    aunt baker boy brother child cousin dentist doctor driver engineer farmer father friend gentleman girl guest
    guide husband king lady lawyer manager mother neighbour nurse officer parent person pilot player police
    professor queen sailor scientist singer sister soldier student teacher uncle visitor waiter wife woman worker
    writer
    """
)
IDEAS = _words(
    """
    accident advice age agreement beginning business choice colour company country culture danger decision
    difference direction distance education energy example experience family freedom future happiness health history
    holiday idea information interest job journey knowledge language law life matter meaning medicine memory mistake
    moment nature opinion part peace plan point power price problem promise reason result sentence shape size
    society sound speech success surprise temperature thought tradition trouble truth weight world
    """
)
ADVERBS = _words(
    """
    about above across actually after again against almost alone along already although always among anyway around
    away back badly behind below between beyond carefully certainly clearly during easily either else enough
    especially even exactly finally first forward generally hardly however immediately indeed inside instead just
    least less likely maybe mostly nearly neither next nobody nothing once only other otherwise outside over perhaps
    probably quickly quite rather really recently several since slowly someone something somewhere still straight
    suddenly together toward under usually very well whether while without
    """
)

TEMPLATES = (
    "Your Name: Luke\nYour Gender: male",
    "system\nuser\nassistant",
    "{adverb}, the {person} who told us about the {idea} has {adverb} left for the {place}.",
    "A {person} and a {person} have {adverb} changed their {idea}.",
    "What did the {adjective} {person} say of our {idea}?",
    "Every {idea} has its {idea}, {adverb} or {adverb}.",
    "What is the {adjective} {thing} near the {place}?",
    "Can you {verb} the {thing} for {name}, please?",
    "{name} would like to {verb} a {adjective} {thing} {time}.",
    "Where did {name} {verb} the {thing}?",
    "There are {number} {thing}s and {number} {thing}s in the {place}.",
    "I don't think that we should {verb} it before {time}.",
    "Yes, of course. The {place} is {adjective} and {adjective}, but it isn't {adjective}.",
    "No, sorry: {name} doesn't {verb} here any more.",
    "Tell me about the {place} where you {verb} every {time}.",
    "How many {thing}s does {name} have? {name} has {number}.",
    "When the {thing} is {adjective}, they {verb} and {verb} until {time}.",
    "It's {digits} degrees in the {place}; {digits} per cent of us {verb} with a {thing}.",
    "My {thing} was {adjective}, so I've had to {verb} another one.",
    "Hello! My name is {name}. I'm {number} years old and I live by the {place}.",
    "Which of those {thing}s can be {adjective}er than this {thing}?",
    "If you {verb} slowly, {name} will {verb} you; if not, who will?",
    "Because of the {thing}, everyone from the {place} is {verb}ing again.",
    "Please repeat the question, then {verb} the {thing} on the {adjective} {thing}.",
    "Convert the text to speech.",
    "Convert the speech to text.",
    "Respond in a text-audio interleaved manner.",
)


def sentences(count: int, seed: int) -> Iterator[str]:
    """`count` sentences, the same for the same seed."""
    draw = random.Random(seed)
    words = {
        "name": NAMES,
        "place": PLACES,
        "thing": THINGS,
        "adjective": ADJECTIVES,
        "verb": VERBS,
        "number": NUMBERS,
        "time": TIMES,
        "person": PEOPLE,
        "idea": IDEAS,
        "adverb": ADVERBS,
    }
    for _ in range(count):
        sentence = draw.choice(TEMPLATES)
        for kind, choices in words.items():
            while f"{{{kind}}}" in sentence:
                sentence = sentence.replace(f"{{{kind}}}", draw.choice(choices), 1)
        while "{digits}" in sentence:
            sentence = sentence.replace("{digits}", str(draw.randrange(1000)), 1)
        yield sentence
