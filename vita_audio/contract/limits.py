"""What requests may ask for: the same for every server, and what one set of engines can serve."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from vita_audio.contract.modes import NAMED_MODES, Mode, mode_of

MIN_SAMPLE_RATE_HZ, MAX_SAMPLE_RATE_HZ = 8_000, 192_000
MIN_AUDIO_SECONDS, MAX_AUDIO_SECONDS = 0.02, 120.0
#: Samples are in [-1, 1]; resampling overshoots that a little, 16-bit integers overshoot it a lot.
MAX_AUDIO_PEAK = 4.0
#: No prose has more characters in a token; longer text is refused before the work of tokenising it.
MAX_CHARACTERS_PER_TOKEN = 16
#: A penalty near 0 would lift what a vocabulary bans, at -1e30, into the range of logits.
MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY = 0.01, 10.0
#: Of a history, before its oldest turns are dropped.
MAX_HISTORY_TOKENS = 65_536
#: Of all clips in a history together: at 16 kHz they fit into a message.
MAX_HISTORY_AUDIO_SECONDS = 1200.0
#: The authors' (docs/model.md, "Sampling defaults").
DEFAULT_REPETITION_PENALTY = 1.05


@dataclass(frozen=True, slots=True)
class Limits:
    """What one set of engines can serve; stored in the engines' manifest.

    `context_tokens`: prompt and answer together. `max_tokens`: the largest MAX_TOKENS; `default_max_tokens` when none
    is sent. `mctp_modules`: K. `default_pattern`: the mode the checkpoint was trained for (generation_config.json).
    `tts_samples`: text is read aloud with sampling by default, as the authors do (small models read better greedily).
    `repetition_penalty`: of requests that send none (generation_config.json). `text_normalization`: how TEXT is written
    before it is read (vita_audio/text/normalization.py).
    """

    context_tokens: int
    max_tokens: int
    default_max_tokens: int
    mctp_modules: int
    default_pattern: tuple[int, ...]
    max_audio_seconds: float = MAX_AUDIO_SECONDS
    tts_samples: bool = True
    repetition_penalty: float = DEFAULT_REPETITION_PENALTY
    text_normalization: str = "none"

    @property
    def max_text_characters(self) -> int:
        return MAX_CHARACTERS_PER_TOKEN * self.context_tokens

    def default_mode(self, task: str) -> Mode:
        """Typed answers to typed text come from the backbone alone, as in the authors' demo."""
        pattern = NAMED_MODES["vanilla"] if task == "text" else self.default_pattern
        return mode_of(pattern, self.mctp_modules)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for the engines' manifest."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Limits:
        """The inverse of `to_dict`. Raises TypeError when a field is missing or unknown."""
        return cls(**{**fields, "default_pattern": tuple(fields["default_pattern"])})
