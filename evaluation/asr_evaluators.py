"""ASR evaluators of speech: pocketsphinx with its own English acoustic model, and the word error rate.

Two, because a strong language model compensates for bad sound: *domain* has the bigrams of the training text, *flat*
takes every word of the lexicon for equally likely. A word error rate means something only beside that of the same
evaluator on the teacher's own sound.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr
from numpy.typing import NDArray

from evaluation.errors import EvaluationError
from training.data.answers import edit_distance, words_of
from training.data.lexicon import LETTERS

Wave = NDArray[np.float32]

RATE_HZ = 16_000
EVALUATORS = ("domain", "flat")

_LETTER_NAMES = (
    "EY,B IY,S IY,D IY,IY,EH F,JH IY,EY CH,AY,JH EY,K EY,EH L,EH M,EH N,OW,P IY,K Y UW,AA R,EH S,T IY,Y UW,V IY,"
    "D AH B AH L Y UW,EH K S,W AY,Z IY"
)
_LETTER_PHONES = dict(
    zip(
        (letter.lower() for letter in LETTERS),
        _LETTER_NAMES.split(","),
        strict=True,
    )
)
_EDGE_S = 0.25  # silence put around the speech: without it the recogniser misses the first sounds
_HISS = np.float32(3e-4)  # -70 dB: digital silence upsets its noise estimate
_DISCOUNT = 0.5  # absolute discounting of bigrams; what it takes goes to the unigrams
_START, _END = "<s>", "</s>"
_LOG_ZERO = -99.0


def pronunciations(lexicon: Iterable[str]) -> dict[str, list[str]]:
    """Phones of each word, from the dictionary that comes with pocketsphinx; letters are spoken by their names.

    Raises:
        EvaluationError: pocketsphinx is missing, or a word is not in its dictionary (all are named).
    """
    wanted = set(lexicon)
    phones: dict[str, list[str]] = defaultdict(list)
    with (_model_folder() / "cmudict-en-us.dict").open(encoding="utf-8") as file:
        for line in file:
            entry, _, spoken = line.strip().partition(" ")
            word = entry.partition("(")[0]
            if word in wanted:
                phones[word].append(spoken.strip())
    for letter, spoken in _LETTER_PHONES.items():
        if letter in wanted and spoken not in phones[letter]:
            phones[letter].append(spoken)
    missing = sorted(wanted - phones.keys())
    if missing:
        raise EvaluationError(f"these words are not in the recogniser's dictionary: {', '.join(missing)}")
    return dict(phones)


def sound_alikes(phones: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Word -> the first of all words that are spoken like it: two, to and too are one word."""
    first: dict[str, str] = {}
    for word in sorted(phones):
        # The first pronunciation is the usual one; the rare ones would make "or" and "are" one word.
        first.setdefault(phones[word][0], word)
    return {word: first[spoken[0]] for word, spoken in phones.items()}


@dataclass(frozen=True, slots=True)
class Errors:
    """Word errors of one text or of many (add them up)."""

    edits: int
    words: int

    def __add__(self, other: Errors) -> Errors:
        return Errors(self.edits + other.edits, self.words + other.words)

    @property
    def rate(self) -> float:
        """Word error rate: edits over reference words; NaN without words."""
        return self.edits / self.words if self.words else math.nan


def word_errors(reference: str, transcript: str, alike: Mapping[str, str] | None = None) -> Errors:
    """Substitutions, deletions and insertions, the fewest; case and punctuation do not count.

    `alike` (see `sound_alikes`) lets words of one sound stand for each other.
    """
    alike = alike or {}
    wanted, got = ([alike.get(word, word) for word in words_of(text)] for text in (reference, transcript))
    return Errors(edit_distance(got, wanted), len(wanted))


def write_dictionary(phones: Mapping[str, Sequence[str]], path: Path) -> None:
    """A pronunciation dictionary in the recogniser's format."""
    lines = []
    for word in sorted(phones):
        for number, spoken in enumerate(phones[word], 1):
            lines.append(f"{word}{'' if number == 1 else f'({number})'} {spoken}\n")
    path.write_text("".join(lines), encoding="utf-8")


def write_bigrams(texts: Iterable[str], lexicon: Iterable[str], path: Path) -> None:
    """A bigram model (ARPA) of `texts` over `lexicon`: absolute discounting, add-one unigrams."""
    vocabulary = sorted(set(lexicon))
    known = set(vocabulary)
    follow: dict[str, Counter[str]] = defaultdict(Counter)
    counts: Counter[str] = Counter(dict.fromkeys([*vocabulary, _END], 1))
    for text in texts:
        words = [_START, *(word for word in words_of(text) if word in known), _END]
        counts.update(words[1:])
        for left, right in itertools.pairwise(words):
            follow[left][right] += 1
    total = sum(counts.values())
    unigram = {word: count / total for word, count in counts.items()}
    lines_1, lines_2 = [], []
    for word in [_START, _END, *vocabulary]:
        after = follow.get(word, Counter())
        occurrences = after.total()
        backoff = 0.0
        if occurrences:
            kept_mass = _DISCOUNT * len(after) / occurrences
            backoff = math.log10(kept_mass / max(1e-9, 1.0 - sum(unigram[right] for right in after)))
            lines_2 += [
                f"{math.log10((count - _DISCOUNT) / occurrences):.4f} {word} {right}"
                for right, count in sorted(after.items())
            ]
        log_p = _LOG_ZERO if word == _START else math.log10(unigram[word])
        lines_1.append(f"{log_p:.4f} {word} {backoff:.4f}")
    _write_arpa(path, [lines_1, lines_2])


def write_flat(lexicon: Iterable[str], path: Path) -> None:
    """A unigram model (ARPA) in which all words are equally likely."""
    vocabulary = sorted(set(lexicon))
    log_p = -math.log10(len(vocabulary) + 1)
    _write_arpa(
        path, [[f"{_LOG_ZERO} {_START}", f"{log_p:.4f} {_END}", *(f"{log_p:.4f} {word}" for word in vocabulary)]]
    )


class AsrEvaluator:
    """One recogniser of 16 kHz speech."""

    def __init__(self, language_model: Path, dictionary: Path) -> None:
        sphinx = _pocketsphinx()
        self._decoder = sphinx.Decoder(lm=str(language_model), dict=str(dictionary), cmn="batch", loglevel="FATAL")

    def transcribe(self, wave: Wave, rate_hz: int) -> str:
        """The words of a wave [samples]; a function of this wave alone, not of those before it."""
        if len(wave) == 0:
            return ""
        if rate_hz != RATE_HZ:
            wave = soxr.resample(wave, rate_hz, RATE_HZ)
        wave = np.pad(wave, round(_EDGE_S * RATE_HZ))
        wave = wave + _HISS * np.random.default_rng(0).standard_normal(len(wave), np.float32)
        pcm = np.clip(np.rint(wave * 32767.0), -32768, 32767).astype(np.int16)
        self._decoder.start_utt()
        self._decoder.process_raw(pcm.tobytes(), full_utt=True)
        self._decoder.end_utt()
        found = self._decoder.hyp()
        return "" if found is None else found.hypstr


def general_evaluator() -> AsrEvaluator:
    """General English, any words: the language model and dictionary that come with pocketsphinx.

    Raises:
        EvaluationError: pocketsphinx is missing.
    """
    folder = _model_folder()
    return AsrEvaluator(folder / "en-us.lm.bin", folder / "cmudict-en-us.dict")


class AsrEvaluators:
    """Both evaluators over one domain, each in `processes` processes. A context manager.

    Args:
        texts: the training text.
        lexicon: every word that may be said.
    """

    def __init__(self, texts: Iterable[str], lexicon: Iterable[str], processes: int = 2) -> None:
        words = sorted(set(lexicon))
        phones = pronunciations(words)
        self.alike = sound_alikes(phones)
        self._stack = contextlib.ExitStack()
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="evaluators-")))
        write_dictionary(phones, folder / "words.dict")
        write_bigrams(texts, words, folder / "domain.lm")
        write_flat(words, folder / "flat.lm")
        self._pool = self._stack.enter_context(
            ProcessPoolExecutor(processes, initializer=_open_evaluators, initargs=(folder,))
        )

    def transcribe(self, waves: Sequence[tuple[Wave, int]], evaluator: str) -> Iterator[str]:
        """Transcripts of (samples, rate in Hz) by one evaluator ("domain" or "flat"), in order, as they come."""
        return self._pool.map(_transcribe, [(wave, rate_hz, evaluator) for wave, rate_hz in waves])

    def errors(self, reference: str, transcript: str) -> Errors:
        """Word errors; words that sound alike are equal."""
        return word_errors(reference, transcript, self.alike)

    def __enter__(self) -> AsrEvaluators:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


_open: dict[str, AsrEvaluator] = {}  # of one pool process


def _open_evaluators(folder: Path) -> None:
    for name in EVALUATORS:
        _open[name] = AsrEvaluator(folder / f"{name}.lm", folder / "words.dict")


def _transcribe(job: tuple[Wave, int, str]) -> str:
    wave, rate_hz, evaluator = job
    return _open[evaluator].transcribe(wave, rate_hz)


def _write_arpa(path: Path, orders: Sequence[Sequence[str]]) -> None:
    head = "".join(f"ngram {order}={len(lines)}\n" for order, lines in enumerate(orders, 1))
    body = "".join(
        f"\\{order}-grams:\n" + "".join(f"{line}\n" for line in lines) + "\n" for order, lines in enumerate(orders, 1)
    )
    path.write_text(f"\\data\\\n{head}\n{body}\\end\\\n", encoding="utf-8")


def _pocketsphinx():  # type: ignore[no-untyped-def]
    try:
        import pocketsphinx
    except ImportError as error:
        raise EvaluationError("the ASR evaluators need pocketsphinx: pip install pocketsphinx") from error
    return pocketsphinx


def _model_folder() -> Path:
    return Path(_pocketsphinx().get_model_path()) / "en-us"
