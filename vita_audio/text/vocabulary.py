"""Token ids: text range, control tokens and audio codes of a checkpoint (docs/audio.md 7)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vita_audio.contract.errors import CheckpointError

_AUDIO_TOKEN = re.compile(r"<\|audio_(\d+)\|>")
_CONTROL_TOKENS = {
    "end_of_text": "<|endoftext|>",
    "im_start": "<|im_start|>",
    "im_end": "<|im_end|>",
    "begin_of_audio": "<|begin_of_audio|>",
    "end_of_audio": "<|end_of_audio|>",
    "audio_placeholder": "<|audio|>",
}
_CONTEXT_OF_AUDIO = "<|context_of_audio|>"


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Where everything lies among the ids. Ids from `tokens` on are rows that padding added to the embeddings.

    `text_tokens`: the byte-level BPE is 0 .. text_tokens - 1. `audio_offset`: id of the first of `audio_codes` codes.
    `context_of_audio` exists in the Plus layout only, where continuous speech features take the places of these ids.
    """

    text_tokens: int
    end_of_text: int
    im_start: int
    im_end: int
    begin_of_audio: int
    end_of_audio: int
    audio_placeholder: int
    audio_offset: int
    audio_codes: int
    tokens: int
    context_of_audio: int | None = None

    @property
    def end_tokens(self) -> tuple[int, int]:
        """The ids that end a stream: <|im_end|> and <|endoftext|>."""
        return self.im_end, self.end_of_text

    def is_text(self, token: int) -> bool:
        """Whether the id belongs to the byte-level BPE (control tokens do not)."""
        return 0 <= token < self.text_tokens

    def audio_code(self, token: int) -> int | None:
        """The audio code of an id, or None; rows beyond the last code are padding, not audio (docs/audio.md 7)."""
        code = token - self.audio_offset
        return code if 0 <= code < self.audio_codes else None

    def audio_ids(self, codes: Iterable[int]) -> list[int]:
        """Ids of audio codes. Raises ValueError for a code outside 0 .. audio_codes - 1."""
        ids = []
        for code in codes:
            if not 0 <= code < self.audio_codes:
                raise ValueError(f"audio code {code} is outside 0..{self.audio_codes - 1}")
            ids.append(self.audio_offset + int(code))
        return ids

    def banned_ids(self, vocab_size: int) -> list[int]:
        """Ids a model with `vocab_size` rows must never emit, ascending.

        An answer is made of text, audio codes, the two audio tags and an end token; every other row is padding or a
        control token that only a prompt may carry.
        """
        allowed = {*self.end_tokens, self.begin_of_audio, self.end_of_audio}
        return [
            token
            for token in range(self.text_tokens, vocab_size)
            if token not in allowed and self.audio_code(token) is None
        ]

    def to_dict(self) -> dict[str, int | None]:
        """Plain data for the engines' manifest."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Vocabulary:
        """The inverse of `to_dict`. Raises TypeError when a field is missing or unknown."""
        return cls(**fields)

    @classmethod
    def from_tokenizer(cls, path: Path) -> Vocabulary:
        """Read the ids from the vocabulary and the added tokens of a `tokenizer.json`.

        Raises:
            CheckpointError: file missing or not JSON, control or audio tokens missing, audio codes not contiguous, or
                text tokens that do not come first; all faults are named.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            added = {str(token["content"]): int(token["id"]) for token in content["added_tokens"]}
            bpe_ids = content["model"]["vocab"].values()
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path}: not a readable tokenizer.json ({type(error).__name__}: {error})") from error

        faults = [f"no token {text}" for text in _CONTROL_TOKENS.values() if text not in added]
        codes = {int(match[1]): token for text, token in added.items() if (match := _AUDIO_TOKEN.fullmatch(text))}
        offset = codes.get(0, -1)
        if not codes:
            faults.append("no audio tokens <|audio_0|>, <|audio_1|>, ...")
        elif any(codes.get(code) != offset + code for code in range(len(codes))):
            faults.append(f"the {len(codes)} audio tokens are not numbered from 0 with contiguous ids")
        text_tokens = min(added.values(), default=0)
        text_ids = sorted(set(bpe_ids) - set(added.values()))
        if text_ids != list(range(text_tokens)):
            faults.append("the text tokens are not the ids below the first added token")
        if faults:
            raise CheckpointError(f"{path}: " + "; ".join(faults))
        return cls(
            text_tokens=text_tokens,
            **{field: added[text] for field, text in _CONTROL_TOKENS.items()},
            audio_offset=offset,
            audio_codes=len(codes),
            tokens=max(added.values()) + 1,
            context_of_audio=added.get(_CONTEXT_OF_AUDIO),
        )


#: Released Boost, Balance and Vanilla checkpoints (168 072 rows, of which 3 are padding).
BASE = Vocabulary(
    text_tokens=151_643,
    end_of_text=151_643,
    im_start=151_644,
    im_end=151_645,
    begin_of_audio=151_674,
    end_of_audio=151_675,
    audio_placeholder=151_684,
    audio_offset=151_685,
    audio_codes=16_384,
    tokens=168_069,
)
