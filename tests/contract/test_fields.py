"""The table of fields is whole, and everything that repeats it says the same."""

from __future__ import annotations

from dataclasses import fields as dataclass_fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vita_audio.contract.__main__ import markdown, repeated, with_inputs, with_table
from vita_audio.contract.errors import InvalidRequest
from vita_audio.contract.fields import INPUTS, OUTPUTS, TASKS, Field, RequestFields
from vita_audio.contract.limits import Limits
from vita_audio.contract.messages import GenerationSettings
from vita_audio.contract.request import check, check_field

ROOT = Path(__file__).resolve().parents[2]
LIMITS = Limits(
    context_tokens=2048, max_tokens=1024, default_max_tokens=512, mctp_modules=10, default_pattern=(1, 10, 4, 10)
)
NUMBERS = [field for field in INPUTS if field.low is not None]


def by_name(fields: list[Field]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("field", fields, ids=lambda field: field.name)


@by_name(list(INPUTS))
def test_a_row_is_whole(field: Field) -> None:
    assert field.name == field.name.upper()
    assert field.help
    assert set(field.tasks) <= set(TASKS)
    assert set(field.needed_by) <= set(field.tasks)
    assert not callable(field.default) or field.default_words
    if field.python_type is not str and field.shape == (1,):
        assert field.low is not None
        assert field.high is not None
        assert np.array([field.high]).astype(field.dtype).astype(object)[0] == field.high  # it fits its type


def test_type_checkers_see_the_fields_of_the_table() -> None:
    assert list(RequestFields.__annotations__) == [field.keyword for field in INPUTS if field.name != "TEXT"]


def test_every_setting_of_the_language_model_is_a_field() -> None:
    settings = {setting.name for setting in dataclass_fields(GenerationSettings)}
    assert settings - {"pattern", "timings_ms", "history_clips"} <= {field.keyword for field in INPUTS}


@by_name(list(INPUTS))
@pytest.mark.parametrize("task", TASKS)
def test_a_default_is_itself_allowed(field: Field, task: str) -> None:
    default = field.default_for(task, LIMITS)
    if default is not None:
        assert check_field(field.name, default, LIMITS) == default


@by_name(NUMBERS)
@settings(deadline=None)
@given(data=st.data())
def test_numbers_are_taken_inside_their_range_only(field: Field, data: st.DataObject) -> None:
    whole = field.python_type is int
    value = data.draw(st.integers(-(2**65), 2**65) if whole else st.floats(-100, 100) | st.just(float("nan")))
    high = field.upper(LIMITS)
    assert field.low is not None
    assert high is not None
    allowed = field.low <= value <= high and not (field.low_excluded and value == field.low)
    if allowed:
        assert check_field(field.name, value, LIMITS) == value
        return
    with pytest.raises(InvalidRequest) as refused:
        check_field(field.name, value, LIMITS)
    assert (refused.value.field, refused.value.code) == (field.name, "invalid_request")
    assert field.allowed(LIMITS) in str(refused.value)


@by_name(NUMBERS)
def test_a_value_is_the_same_from_python_and_from_triton(field: Field) -> None:
    value = field.python_type(1) if field.name != "SAMPLE_RATE" else 8000
    assert check_field(field.name, value) == check_field(field.name, np.array([value], field.dtype)) == value


def test_checks_need_no_engines() -> None:
    assert check({"TEXT": "hi", "TOP_P": 0.5, "MODE": "TURBO"}) == {
        "TASK": "chat",
        "TEXT": "hi",
        "TOP_P": 0.5,
        "MODE": "turbo",
    }
    assert check({"TEXT": "hi", "MAX_TOKENS": 100_000, "MODE": "1,99"})["MODE"] == "1,99"
    for beyond in ({"MAX_TOKENS": 100_000}, {"MODE": "1,99"}):
        with pytest.raises(InvalidRequest):
            check({"TEXT": "hi", **beyond}, LIMITS)


def test_the_table_names_every_field_with_its_range() -> None:
    tables = [markdown(of_conversations).splitlines() for of_conversations in (False, True)]
    rows, others = ([line for line in table if line.startswith("| `")] for table in tables)
    assert len(rows) + len(others) == len(INPUTS) + len(OUTPUTS)
    assert "| `READ_ONLY` | INT32 | 0 to 1 | 0 |" in "\n".join(others)
    assert "| `TEMPERATURE` | FP32 | 0 to 10 | 0; tts: 1, or 0 by the checkpoint | randomness; 0 is greedy |" in rows
    assert {row.count("|") for row in rows} == {6, 4}


@pytest.mark.parametrize(("path", "renewed"), list(repeated(ROOT)), ids=lambda value: getattr(value, "name", ""))
def test_what_repeats_the_table_is_up_to_date(path: Path, renewed: object) -> None:
    """If this fails: python -m vita_audio.contract --write."""
    text = path.read_text(encoding="utf-8")
    assert callable(renewed)
    assert text == renewed(text)
    pages = {"README.md": False, "conversations.md": True}
    repeated_here = [f for f in INPUTS if pages.get(path.name, f.of_conversations) == f.of_conversations]
    assert all(field.name in text for field in repeated_here)


def test_writing_replaces_what_is_out_of_date() -> None:
    readme = "a\n<!-- fields -->\nold\n<!-- /fields -->\nb\n"
    assert with_table(readme) == f"a\n<!-- fields -->\n{markdown()}\n<!-- /fields -->\nb\n"
    config = (ROOT / "model_repository" / "vita_audio" / "config.pbtxt").read_text()
    lines = config.splitlines(keepends=True)
    without_seed = "".join(line for line in lines if "SEED" not in line)
    assert with_inputs(without_seed) == config
