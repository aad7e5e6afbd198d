"""Token ids of the released layouts and of a tokenizer.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vita_audio.checkpoint.random_weights.tokenizer import write_tokenizer
from vita_audio.contract.errors import CheckpointError
from vita_audio.text.vocabulary import BASE, Vocabulary

RELEASED_ROWS = 168_072
#: Released Plus checkpoints: <|context_of_audio|> after <|end_of_audio|> moves all later ids by one (2 padding rows).
PLUS = replace(BASE, audio_placeholder=151_685, audio_offset=151_686, tokens=168_070, context_of_audio=151_676)


def test_released_layouts() -> None:
    assert (BASE.begin_of_audio, BASE.end_of_audio, PLUS.begin_of_audio) == (151_674, 151_675, 151_674)
    assert BASE.audio_ids([0, 16_383]) == [151_685, 168_068]
    assert PLUS.audio_ids([0, 16_383]) == [151_686, 168_069]
    assert (BASE.context_of_audio, PLUS.context_of_audio) == (None, 151_676)
    assert BASE.end_tokens == PLUS.end_tokens == (151_645, 151_643)


@pytest.mark.parametrize(("vocabulary", "dead_rows"), [(BASE, 3), (PLUS, 2)])
def test_padding_rows_are_neither_audio_nor_allowed(vocabulary: Vocabulary, dead_rows: int) -> None:
    banned = set(vocabulary.banned_ids(RELEASED_ROWS))
    padding = range(vocabulary.tokens, RELEASED_ROWS)
    assert len(padding) == dead_rows
    for token in padding:
        assert vocabulary.audio_code(token) is None
        assert token in banned


def test_an_answer_is_made_of_text_audio_tags_and_end_tokens() -> None:
    banned = set(BASE.banned_ids(RELEASED_ROWS))
    tags = {BASE.begin_of_audio, BASE.end_of_audio, *BASE.end_tokens}
    for token in range(RELEASED_ROWS):
        allowed = BASE.is_text(token) or BASE.audio_code(token) is not None or token in tags
        assert allowed == (token not in banned)
    assert {BASE.im_start, BASE.audio_placeholder} <= banned


def test_audio_codes_and_ids() -> None:
    assert [BASE.audio_code(token) for token in (151_684, 151_685, 168_068, 168_069)] == [None, 0, 16_383, None]
    for code in (-1, 16_384):
        with pytest.raises(ValueError, match=r"outside 0\.\.16383"):
            BASE.audio_ids([code])


@pytest.mark.parametrize("vocabulary", [BASE, PLUS])
def test_round_trip_through_json(vocabulary: Vocabulary) -> None:
    assert Vocabulary.from_dict(json.loads(json.dumps(vocabulary.to_dict()))) == vocabulary


def _released_tokenizer_json(plus: bool) -> dict[str, Any]:
    """The id layout of the released tokenizers (docs/audio.md 7), with made-up text tokens."""
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|qwen_{i}|>" for i in range(19))]
    names += [f"<|{edge}_of_{kind}|>" for kind in ("image", "video", "patch") for edge in ("begin", "end", "context")]
    names += ["<|begin_of_audio|>", "<|end_of_audio|>", *(["<|context_of_audio|>"] if plus else [])]
    names += [f"<|{edge}_of_{kind}|>" for kind in ("quad", "ref", "box") for edge in ("begin", "end")]
    names += ["<|image|>", "<|video|>", "<|audio|>", *(f"<|audio_{i}|>" for i in range(16_384))]
    added = [{"id": 151_643 + i, "content": name} for i, name in enumerate(names)]
    return {"added_tokens": added, "model": {"vocab": {f"t{i}": i for i in range(151_643)}}}


@pytest.mark.parametrize("expected", [BASE, PLUS])
def test_released_layouts_are_read_from_a_tokenizer(expected: Vocabulary, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(_released_tokenizer_json(plus=expected is PLUS)))
    assert Vocabulary.from_tokenizer(path) == expected


def test_seed_layout(tmp_path: Path) -> None:
    tokens = write_tokenizer(tmp_path, merges=50, audio_codes=16, seed=0)
    vocabulary = Vocabulary.from_tokenizer(tmp_path / "tokenizer.json")
    assert vocabulary == replace(
        vocabulary,
        text_tokens=306,
        end_of_text=306,
        begin_of_audio=309,
        end_of_audio=310,
        audio_placeholder=311,
        audio_offset=312,
        audio_codes=16,
        tokens=tokens,
    )


def _drop(name: str) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != name]

    return change


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (_drop("<|im_end|>"), r"no token <\|im_end\|>"),
        (_drop("<|audio_7|>"), "not numbered from 0 with contiguous ids"),
        (lambda content: content["model"]["vocab"].pop("A"), "text tokens are not the ids below"),
        (lambda content: content.pop("added_tokens"), "KeyError"),
        (lambda content: content.update(model=None), "not a readable tokenizer.json"),
    ],
)
def test_wrong_tokenizers(change: Callable[[dict[str, Any]], None], part: str, tmp_path: Path) -> None:
    write_tokenizer(tmp_path, merges=10, audio_codes=16, seed=0)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=part):
        Vocabulary.from_tokenizer(path)


def test_missing_and_truncated_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Vocabulary.from_tokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text('{"added_tokens": [')
    with pytest.raises(CheckpointError, match="not a readable"):
        Vocabulary.from_tokenizer(tmp_path / "tokenizer.json")
