"""The suites by name, and which cases of one are asked."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from evaluation.case import Case
from evaluation.errors import EvaluationError
from evaluation.suites import aishell, fleurs, librispeech, libritts, manifest, seed_tts, spoken_qa, wenetspeech


@dataclass(frozen=True, slots=True)
class Suite:
    """`parts`: what is scored on its own; the first is the default. `read`: (folder, part) -> all its cases."""

    title: str
    parts: tuple[str, ...]
    read: Callable[[Path, str], list[Case]]


SUITES: dict[str, Suite] = {
    "librispeech": Suite("LibriSpeech", ("test-clean", "test-other"), librispeech.read),
    "aishell": Suite("AISHELL-1", ("test",), aishell.read),
    "wenetspeech": Suite("WenetSpeech", ("test_net", "test_meeting"), wenetspeech.read),
    "fleurs": Suite("FLEURS", ("en", "zh"), fleurs.read),
    "seed-tts": Suite("Seed-TTS-eval", ("en", "zh", "hard"), seed_tts.read),
    "libritts": Suite("LibriTTS", ("test-clean",), libritts.read),
    "llama-questions": Suite("LLaMA Questions", ("test",), spoken_qa.reader("llama_questions")),
    "trivia-qa": Suite("TriviaQA", ("test",), spoken_qa.reader("trivia_qa")),
    "web-questions": Suite("Web Questions", ("test",), spoken_qa.reader("web_questions")),
    "manifest": Suite("manifest", ("all",), manifest.read),
}


def load_suite(name: str, folder: Path, part: str | None, limit: int | None, seed: int = 0) -> tuple[str, list[Case]]:
    """The part, and at most `limit` of its cases in an order of chance: the same for the same seed.

    Raises:
        EvaluationError: the suite has no such part, the folder is not the suite, an id comes twice.
    """
    suite = SUITES[name]
    part = part or suite.parts[0]
    if part not in suite.parts:
        raise EvaluationError(f"--part {part}: {name} has {', '.join(suite.parts)}")
    cases = suite.read(folder, part)
    twice = [case_id for case_id, count in Counter(case.id for case in cases).items() if count > 1]
    if twice:
        raise EvaluationError(f"{folder}: the id {twice[0]} comes twice")
    random.Random(f"{seed} {name} {part}").shuffle(cases)
    return part, cases[:limit]
