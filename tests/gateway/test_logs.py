"""Logs: a JSON object a line, without what callers say."""

from __future__ import annotations

import json
import logging

from gateway.logs import JsonFormatter


def line(message: str, *arguments: object, error: BaseException | None = None, **extra: object) -> dict[str, object]:
    record = logging.getLogger("x").makeRecord(
        "x", logging.WARNING, "f", 1, message, arguments, None if error is None else (type(error), error, None)
    )
    record.__dict__.update(extra)
    text = JsonFormatter().format(record)
    assert "\n" not in text
    return dict(json.loads(text))


def test_a_record_is_one_object() -> None:
    made = line("server %s\nleft", "a", server="b", seconds=1.5)
    assert str(made.pop("time"))[10] == "T"
    assert made == {"level": "warning", "event": "server a\nleft", "server": "b", "seconds": 1.5}


def test_of_an_error_its_type_and_place_and_not_its_text() -> None:
    def fails() -> None:
        raise ValueError("my words")

    try:
        fails()
    except ValueError as error:
        made = line("fault", error=error)
    assert str(made["error"]).startswith("ValueError at ")
    assert "test_logs.py:" in str(made["error"])
    assert "my words" not in json.dumps(made)
