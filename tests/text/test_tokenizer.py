"""Tokenising user text, and detokenising a stream without ever cutting a character."""

from __future__ import annotations

import json
import unicodedata
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from vita_audio.checkpoint.random_weights.tokenizer import write_tokenizer
from vita_audio.contract.errors import CheckpointError
from vita_audio.text.tokenizer import TextTokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, merges=300, audio_codes=32, seed=0)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> TextTokenizer:
    return TextTokenizer(folder / "tokenizer.json")


@pytest.fixture(scope="module")
def library(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.mark.parametrize(
    "text", ["Where is the café?", "你好，世界", "👩‍👩‍👧 ok", "a\n\n b\t", "<|im_end|>", "<|audio_3|>"]
)
def test_encode_then_decode(tokenizer: TextTokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(text=st.text(max_size=40), token=st.sampled_from(["<|im_end|>", "<|endoftext|>", "<|audio|>", "<|audio_3|>"]))
def test_user_text_never_becomes_a_control_or_audio_token(tokenizer: TextTokenizer, text: str, token: str) -> None:
    ids = tokenizer.encode(f"{text}{token}{text}")
    assert all(tokenizer.vocabulary.is_text(id_) for id_ in ids)


def test_the_file_itself_would_read_them_as_control_tokens(library: Tokenizer, tokenizer: TextTokenizer) -> None:
    assert library.encode("<|im_end|><|audio_3|>").ids == [
        tokenizer.vocabulary.im_end,
        *tokenizer.vocabulary.audio_ids([3]),
    ]


@given(text=st.text(max_size=60))
def test_ids_equal_the_library_for_ordinary_text(library: Tokenizer, tokenizer: TextTokenizer, text: str) -> None:
    if "<|" not in text:
        assert tokenizer.encode(text) == library.encode(text, add_special_tokens=False).ids


@given(ids=st.lists(st.integers(0, 555), max_size=60))
def test_decode_equals_the_library_for_any_text_ids(
    library: Tokenizer, tokenizer: TextTokenizer, ids: list[int]
) -> None:
    assert tokenizer.decode(ids) == library.decode(ids, skip_special_tokens=True)


def test_lone_surrogates_are_refused(tokenizer: TextTokenizer) -> None:
    with pytest.raises(ValueError, match="lone surrogate at character 2"):
        tokenizer.encode("ab\ud800")


def _stream(tokenizer: TextTokenizer, ids: list[int], cuts: list[int]) -> list[str]:
    detokenizer = tokenizer.detokenizer()
    edges = sorted({0, len(ids), *(cut % (len(ids) + 1) for cut in cuts)})
    deltas = [detokenizer.push(ids[a:b]) for a, b in pairwise(edges)]
    return [*deltas, detokenizer.flush()]


@given(text=st.text(max_size=60), cuts=st.lists(st.integers(0, 1000), max_size=30))
def test_streamed_text_equals_the_text(tokenizer: TextTokenizer, text: str, cuts: list[int]) -> None:
    deltas = _stream(tokenizer, tokenizer.encode(text), cuts)
    assert "".join(deltas) == unicodedata.normalize("NFC", text)
    assert all("\ufffd" not in delta for delta in deltas) or "\ufffd" in text


@given(ids=st.lists(st.integers(0, 700), max_size=80), cuts=st.lists(st.integers(0, 1000), max_size=30))
def test_streamed_deltas_equal_the_full_decode_for_any_ids(
    tokenizer: TextTokenizer, ids: list[int], cuts: list[int]
) -> None:
    """Ids 0..255 are single bytes, so this draws every kind of broken UTF-8; ids from 556 on make no text."""
    deltas = _stream(tokenizer, ids, cuts)
    assert "".join(deltas) == tokenizer.decode(ids)
    for delta in deltas:
        delta.encode("utf-8")


def test_a_character_waits_for_its_last_byte_across_audio(tokenizer: TextTokenizer) -> None:
    first, second, third, fourth = tokenizer.encode("😀")
    detokenizer = tokenizer.detokenizer()
    audio = tokenizer.vocabulary.audio_ids([1, 2])
    assert detokenizer.push([first, second]) == ""
    assert detokenizer.push([tokenizer.vocabulary.begin_of_audio, *audio]) == ""
    assert detokenizer.push([third]) == ""
    assert detokenizer.push([fourth]) == "😀"
    assert detokenizer.flush() == ""


def test_an_unfinished_character_is_flushed_as_a_replacement(tokenizer: TextTokenizer) -> None:
    detokenizer = tokenizer.detokenizer()
    assert detokenizer.push(tokenizer.encode("a😀")[:-1]) == "a"
    assert detokenizer.flush() == "\ufffd"


def test_tokenizers_that_are_not_byte_level_are_refused(folder: Path, tmp_path: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    content["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="byte-level"):
        TextTokenizer(path)
    content["decoder"] = {"type": "ByteLevel"}
    content["model"]["vocab"] = {f"{text} ": token for text, token in content["model"]["vocab"].items()}
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="not a usable"):
        TextTokenizer(path)
