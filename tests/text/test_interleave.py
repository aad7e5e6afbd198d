"""The interleaving rule: golden cases and what holds for any answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vita_audio.text.interleave import interleave

BEGIN, END = 1, 2


def test_golden_cases(golden: Path) -> None:
    cases = json.loads((golden / "language_model" / "interleaving.json").read_text())
    assert cases
    for case in cases:
        got = interleave(case["input"], case["ratio"], case["begin_of_audio"], case["end_of_audio"])
        assert got == case["interleaved"], case


_ratios = st.lists(st.tuples(st.integers(1, 6), st.integers(3, 12)), min_size=1, max_size=4).map(
    lambda pairs: [number for pair in pairs for number in pair]
)
_text = st.lists(st.integers(100, 999), min_size=1, max_size=60)
_audio = st.lists(st.integers(1000, 1999), min_size=1, max_size=120)


@given(ratio=_ratios, text=_text, audio=_audio, split=st.integers(0, 60))
def test_nothing_is_lost_and_chunks_have_their_sizes(
    ratio: list[int], text: list[int], audio: list[int], split: int
) -> None:
    result = interleave([*text[:split], BEGIN, *audio, END, *text[split:]], ratio, BEGIN, END)
    assert [token for token in result if 100 <= token < 1000] == text
    assert [token for token in result if token >= 1000] == audio
    blocks = _blocks(result)
    for index, (text_chunk, audio_chunk) in enumerate(blocks[:-1]):
        pair = min(index, len(ratio) // 2 - 1)
        assert len(text_chunk) == ratio[2 * pair]
        assert len(audio_chunk) == ratio[2 * pair + 1] - 2
    assert blocks[-1][0]
    assert blocks[-1][1]


def _blocks(ids: list[int]) -> list[tuple[list[int], list[int]]]:
    """Split "text begin audio end text begin audio end ..." into pairs."""
    blocks = []
    while ids:
        begin, end = ids.index(BEGIN), ids.index(END)
        blocks.append((ids[:begin], ids[begin + 1 : end]))
        ids = ids[end + 1 :]
    return blocks


@given(ratio=_ratios, text=_text, audio=_audio)
def test_text_alone_and_audio_alone_stay(ratio: list[int], text: list[int], audio: list[int]) -> None:
    assert interleave(text, ratio, BEGIN, END) == text
    spoken = [BEGIN, *audio, END]
    assert interleave(spoken, ratio, BEGIN, END) == spoken


@pytest.mark.parametrize("ratio", [[], [1], [1, 2], [0, 10], [1, 10, 4]])
def test_bad_ratios(ratio: list[int]) -> None:
    with pytest.raises(ValueError, match="pairs"):
        interleave([100, BEGIN, 1000, END], ratio, BEGIN, END)


@pytest.mark.parametrize("ids", [[100, BEGIN, 1000], [BEGIN, 1000, END, BEGIN, 1001, END], [END, 1000, BEGIN]])
def test_bad_tags(ids: list[int]) -> None:
    with pytest.raises(ValueError, match="tag"):
        interleave(ids, [1, 10], BEGIN, END)
