"""Keys by which the prefix cache compares prompts: ids, and what is in rows of embeddings."""

from __future__ import annotations

import numpy as np
import pytest

from generation_doubles import VANILLA, request
from vita_audio.contract.errors import EngineError
from vita_audio.engines.interface import Embedded
from vita_audio.generation.content_keys import content_keys
from vita_audio.generation.request import GenerationRequest
from vita_audio.generation.stream import Stream

SPEECH = 9
PROMPT = [1, 2, SPEECH, SPEECH, SPEECH, 3]


def embedded(seed: int = 0, places: tuple[int, ...] = (2, 3, 4)) -> Embedded:
    rows = np.random.default_rng(seed).standard_normal((len(places), 8), np.float32)
    return Embedded(np.array(places, np.int64), rows)


def test_ids_are_their_own_keys() -> None:
    assert content_keys(PROMPT, None) == PROMPT
    assert list(content_keys(PROMPT, embedded(places=()))) == PROMPT


def test_rows_count_by_what_is_in_them() -> None:
    keys = content_keys(PROMPT, embedded())
    assert [*keys[:2], keys[5]] == [1, 2, 3]
    assert len(set(keys[2:5])) == 3
    assert max(keys[2:5]) < 0
    assert content_keys(PROMPT, embedded()) == keys
    other = embedded()
    other.rows[1, 7] = np.nextafter(other.rows[1, 7], np.float32(9))
    changed = [a != b for a, b in zip(keys, content_keys(PROMPT, other), strict=True)]
    assert changed == [False, False, False, True, False, False]


def test_rows_that_are_a_view_count_the_same() -> None:
    whole = embedded()
    strided = np.repeat(whole.rows, 2, axis=1)[:, ::2]
    assert content_keys(PROMPT, Embedded(whole.places, strided)) == content_keys(PROMPT, whole)


def test_a_stream_has_the_keys_of_its_prompt_and_the_ids_it_made() -> None:
    settings = request(PROMPT, VANILLA).settings
    stream = Stream("s", GenerationRequest(PROMPT, settings, embedded()), 0, 100, ())
    stream.begin(0, 2, 0)
    row = stream.extend_row(4, None)
    assert row.embedded is not None
    assert row.embedded.places.tolist() == [0, 1]
    np.testing.assert_array_equal(row.embedded.rows, embedded().rows[:2])
    stream.extended(4, None)
    last = stream.extend_row(6, 0)
    assert last.embedded is not None
    assert last.embedded.places.tolist() == [0]
    stream.extended(6, 44)
    assert stream.keys == [*content_keys(PROMPT, embedded()), 44]
    assert stream.extend_row(7, 1).embedded is None


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (embedded(places=(2, 3, 6)), r"places from 2 to 6 are not valid: ascending, in \[0, 6\)"),
        (embedded(places=(-1, 3, 4)), "places from -1 to 4"),
        (embedded(places=(3, 3, 4)), "ascending"),
        (Embedded(np.array([2, 3]), embedded().rows), r"shape \[3, 8\] for places \[2\]"),
        (Embedded(embedded().places, embedded().rows * np.float32("nan")), "a value is not finite"),
    ],
)
def test_rows_that_do_not_fit_the_prompt(wrong: Embedded, named: str) -> None:
    with pytest.raises(EngineError, match=named):
        GenerationRequest(PROMPT, request(PROMPT, VANILLA).settings, wrong)
