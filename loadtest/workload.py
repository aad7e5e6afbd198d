"""The workload: which kind of request, how long the question, how long the answer, whether the caller cuts in.

Lengths are lognormal, as talk is: many short turns, a few long ones. Everything comes from one random generator, so
the same seed gives the same requests in the same order.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from loadtest.errors import LoadTestError, wrong
from loadtest.tally import SLOW_READER
from vita_audio.contract.rates import INPUT_SAMPLE_RATE_HZ
from vita_client import InvalidRequest, Request, build_request
from vita_client.audio import load_speech

CONVERSATION = "conversation"
SCENARIOS = ("chat_voice", "chat_text", "tts", "asr", CONVERSATION)
DEFAULT_MIX = {"chat_voice": 5.0, "chat_text": 2.0, "tts": 2.0, "asr": 1.0}
_PAUSE_S = 0.25
#: Answers: sampled like the authors' speech synthesis, so that they differ; a transcript is greedy.
_TEMPERATURE, _TOP_K = 1.0, 50
_SENTENCES = (
    "What is the weather like today?",
    "Tell me something about the sea.",
    "How do I boil an egg so that it stays soft?",
    "Please remind me to call the dentist tomorrow morning.",
    "Which train goes to the airport, and when does it leave?",
    "I would like to hear a short story about a fox.",
    "Why is the sky red in the evening?",
    "Could you read me the news in two sentences?",
    "My brother moved to another city last year and I miss him.",
    "How much is seventeen times six?",
)


@dataclass(frozen=True, slots=True)
class Lengths:
    """A lognormal length: its median, the spread of its logarithm, and where it is cut off."""

    median: float
    sigma: float
    least: float
    most: float

    def draw(self, random_: random.Random) -> float:
        return min(max(self.median * math.exp(random_.gauss(0.0, self.sigma)), self.least), self.most)


@dataclass(frozen=True, slots=True)
class UserProfile:
    """How users behave.

    Args:
        mix: weights of the scenarios.
        barge_in: share of the spoken answers the caller cuts short, between `barge_in_s` after the first sound.
        slow: share of all streams whose reader takes `slow_read_s` over each response.
        speech_s, words, answer_tokens: lengths of spoken questions, of texts and of answers (MAX_TOKENS).
        turns: of a conversation. think_s: between its turns, and between two requests of a user in the closed loop.
    """

    mix: Mapping[str, float] = field(default_factory=lambda: dict(DEFAULT_MIX))
    mode: str | None = None
    barge_in: float = 0.1
    barge_in_s: tuple[float, float] = (0.3, 3.0)
    slow: float = 0.0
    slow_read_s: float = 0.5
    speech_s: Lengths = Lengths(2.5, 0.6, 0.5, 15.0)
    words: Lengths = Lengths(12, 0.5, 3, 60)
    answer_tokens: Lengths = Lengths(150, 0.5, 20, 400)
    turns: Lengths = Lengths(5, 0.5, 2, 20)
    think_s: Lengths = Lengths(2.0, 0.5, 0.0, 10.0)


@dataclass(frozen=True, slots=True, eq=False)
class UserRequest:
    """One request and what its user does with the answer.

    Args:
        barge_in_s: seconds after the first sound at which the user cuts in; None: never.
        read_delay_s: pause after each response.
    """

    scenario: str
    request: Request
    seed: int
    barge_in_s: float | None = None
    read_delay_s: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class UserTalk:
    """A conversation: spoken requests in order, and the seconds that its user thinks after each answer."""

    turns: tuple[UserRequest, ...]
    think_s: tuple[float, ...]


class Workload:
    """Draws the requests of one user."""

    def __init__(self, profile: UserProfile, voices: Sequence[NDArray[np.float32]], random_: random.Random) -> None:
        self._profile, self._voices, self._random = profile, voices, random_
        self._scenarios = [name for name in SCENARIOS if profile.mix.get(name)]
        self._weights = [profile.mix[name] for name in self._scenarios]

    def draw(self) -> UserRequest | UserTalk:
        profile, random_ = self._profile, self._random
        scenario = random_.choices(self._scenarios, self._weights)[0]
        if scenario == CONVERSATION:
            turns = tuple(self._request(scenario) for _ in range(round(profile.turns.draw(random_))))
            return UserTalk(turns, tuple(profile.think_s.draw(random_) for _ in turns))
        return self._request(scenario)

    def _request(self, scenario: str) -> UserRequest:
        profile, random_ = self._profile, self._random
        seed, max_tokens = random_.getrandbits(32), round(profile.answer_tokens.draw(random_))
        barge_in_s = random_.uniform(*profile.barge_in_s) if random_.random() < profile.barge_in else None
        if scenario == "asr":
            request = build_request(
                audio=self._speech(), task="asr", mode=profile.mode, max_tokens=max_tokens, temperature=0.0, seed=seed
            )
        else:
            voice = scenario in ("chat_voice", CONVERSATION)
            request = build_request(
                None if voice else self._text(),
                audio=self._speech() if voice else None,
                task="tts" if scenario == "tts" else "chat",
                mode=profile.mode,
                max_tokens=max_tokens,
                temperature=_TEMPERATURE,
                top_k=_TOP_K,
                seed=seed,
            )
        if scenario != CONVERSATION and random_.random() < profile.slow:
            return UserRequest(SLOW_READER, request, seed, None, profile.slow_read_s)
        return UserRequest(scenario, request, seed, None if scenario == "asr" else barge_in_s)

    def _speech(self) -> NDArray[np.float32]:
        """Speech of a drawn length: recordings one after the other with pauses, cut. float32 [samples], 16 kHz."""
        wanted = round(self._profile.speech_s.draw(self._random) * INPUT_SAMPLE_RATE_HZ)
        pause = np.zeros(round(_PAUSE_S * INPUT_SAMPLE_RATE_HZ), np.float32)
        pieces: list[NDArray[np.float32]] = []
        while sum(map(len, pieces)) < wanted:
            pieces += [self._random.choice(self._voices), pause]
        return np.concatenate(pieces)[:wanted]

    def _text(self) -> str:
        wanted = round(self._profile.words.draw(self._random))
        words: list[str] = []
        while len(words) < wanted:
            words += self._random.choice(_SENTENCES).split()
        return " ".join(words[:wanted])


def parse_mix(text: str) -> dict[str, float]:
    """Weights from "chat_voice=5,tts=2".

    Raises:
        LoadTestError: an unknown scenario, a negative weight, or nothing but zeros.
    """
    mix: dict[str, float] = {}
    for part in text.split(","):
        name, _, weight = part.strip().partition("=")
        if name not in SCENARIOS:
            raise wrong("--mix", name, f"scenarios are {', '.join(SCENARIOS)}")
        try:
            mix[name] = float(weight or 1)
        except ValueError as error:
            raise wrong("--mix", part, "it has the form scenario=weight") from error
        if not 0 <= mix[name] < math.inf:
            raise wrong("--mix", part, "a weight is 0 or more")
    if not any(mix.values()):
        raise wrong("--mix", text, "all its weights are 0", "give one scenario a weight")
    return mix


def load_voices(path: Path) -> list[NDArray[np.float32]]:
    """The recordings callers speak with: one file, or all WAV and FLAC files of a folder. float32 [samples], 16 kHz.

    Raises:
        LoadTestError: nothing there, or a file that is no sound.
    """
    files = sorted(p for p in path.iterdir() if p.suffix in (".wav", ".flac")) if path.is_dir() else [path]
    if not files:
        raise wrong("--speech", str(path), "the folder holds no WAV or FLAC file")
    try:
        return [load_speech(file) for file in files]
    except InvalidRequest as error:
        raise LoadTestError(f"--speech: {error}") from error
