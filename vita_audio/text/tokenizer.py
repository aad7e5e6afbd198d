"""Text to token ids and back: byte-level BPE from `tokenizer.json`, and detokenisation of a stream."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from vita_audio.contract.errors import CheckpointError
from vita_audio.text.vocabulary import Vocabulary


class TextTokenizer:
    """The text part of a checkpoint's tokenizer. Control and audio tokens are ids of `vocabulary`, never text.

    Args:
        path: `tokenizer.json` of the checkpoint or of the engines' folder (Qwen2.5 layout).

    Raises:
        CheckpointError: the file is missing or unreadable, not a byte-level BPE, or lacks tokens (all are named).
    """

    def __init__(self, path: Path) -> None:
        self.vocabulary = Vocabulary.from_tokenizer(path)
        content = json.loads(path.read_text(encoding="utf-8"))
        if not _is_byte_level(content.get("decoder")):
            raise CheckpointError(f"{path}: its decoder is not ByteLevel; only byte-level BPE tokenizers are supported")
        # Without added tokens nothing a user types can become one: "<|im_end|>" is seven or so plain text tokens.
        content["added_tokens"], content["post_processor"] = [], None
        content["truncation"] = content["padding"] = None
        try:
            self._tokenizer = Tokenizer.from_str(json.dumps(content))
            self._token_bytes = _token_bytes(content["model"]["vocab"], self.vocabulary.text_tokens)
        except Exception as error:  # `tokenizers` raises plain Exception
            raise CheckpointError(f"{path}: not a usable tokenizer.json ({error})") from error

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; strings that look like control tokens stay text. Raises ValueError for lone surrogates."""
        return self._tokenizer.encode(_well_formed(text), add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; control and audio tokens give none, bytes that are not UTF-8 give U+FFFD."""
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")

    def token_bytes(self, token: int) -> bytes:
        """The bytes one id stands for (often a part of a character); empty for control and audio tokens."""
        return self._token_bytes[token] if self.vocabulary.is_text(token) else b""

    def detokenizer(self) -> IncrementalDetokenizer:
        """The state of one stream's detokenisation."""
        return IncrementalDetokenizer(self)


class IncrementalDetokenizer:
    """Turns ids into text as they come; bytes of an unfinished UTF-8 character wait for the rest of it.

    All deltas and the flush joined equal `TextTokenizer.decode` of all ids, however they were cut. Control and audio
    tokens may stand between the tokens of one character.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._token_bytes = tokenizer.token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, ids: Iterable[int]) -> str:
        """Text that these ids complete (may be empty)."""
        return self._decoder.decode(b"".join(map(self._token_bytes, ids)))

    def flush(self) -> str:
        """End of the stream: U+FFFD for a character that never got complete, else nothing."""
        return self._decoder.decode(b"", final=True)


def _well_formed(text: str) -> str:
    """The text itself, if it can be written as UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"text has a lone surrogate at character {error.start}, so it is not valid Unicode") from error
    return text


def _is_byte_level(decoder: Any) -> bool:
    """Whether a tokenizer.json decoder section is ByteLevel, alone or in a sequence."""
    if not isinstance(decoder, dict):
        return False
    return decoder.get("type") == "ByteLevel" or any(map(_is_byte_level, decoder.get("decoders", [])))


def _token_bytes(vocab: dict[str, int], text_tokens: int) -> list[bytes]:
    """Bytes of ids 0 .. text_tokens - 1; a byte-level vocabulary writes each byte as one printable character."""
    byte_of = _byte_of_character()
    table = [b""] * text_tokens
    for text, token in vocab.items():
        if token < text_tokens:
            table[token] = bytes(byte_of[character] for character in text)
    return table


def _byte_of_character() -> dict[str, int]:
    """The byte-level alphabet: printable Latin-1 bytes stand for themselves, the others for U+0100, U+0101, ..."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    return {**{chr(byte): byte for byte in printable}, **{chr(0x100 + i): byte for i, byte in enumerate(others)}}
