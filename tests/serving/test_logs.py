"""The log of a model process: one record cannot look like two, and a flood is counted, not written."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving import logs
from serving.logs import INTERVAL_S, MAX_CHARACTERS, RateLimit, SafeFormatter

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def written() -> tuple[logging.Logger, io.StringIO]:
    """A logger and what it has written, as in a model process."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    handler.addFilter(RateLimit())
    handler.setFormatter(SafeFormatter("%(levelname)s model: %(message)s"))
    logger = logging.Logger("test")
    logger.addHandler(handler)
    return logger, text


def shown(message: str, error: BaseException | None = None) -> str:
    info = (type(error), error, error.__traceback__) if error else None
    record = logging.LogRecord("test", logging.ERROR, __file__, 1, "stream %s", (message,), info)
    return SafeFormatter("%(levelname)s model: %(message)s").format(record)


@given(st.text())
def test_a_message_is_one_line_of_printable_characters(message: str) -> None:
    line = shown(message)
    assert line.isprintable()
    if message.isprintable():
        assert line == f"ERROR model: stream {message}"[:MAX_CHARACTERS]


@pytest.mark.parametrize(
    ("character", "escaped"),
    [("\n", r"\n"), ("\r", r"\r"), ("\x1b", r"\x1b"), ("\x85", r"\x85"), ("\u2028", r"\u2028"), ("\ud800", r"\ud800")],
)
def test_what_could_end_a_line_or_colour_it_is_escaped(character: str, escaped: str) -> None:
    assert shown(f"a{character}INFO model: forged") == rf"ERROR model: stream a{escaped}INFO model: forged"


@given(st.text())
def test_only_the_first_line_of_a_record_begins_at_the_margin(message: str) -> None:
    first, *others = shown("x", ValueError(f"{message}\nINFO model: forged")).split("\n")
    assert first == "ERROR model: stream x"
    assert others[0] == "    ValueError: " + others[0].removeprefix("    ValueError: ")
    assert all(line.startswith("    ") and line.isprintable() for line in others)


def test_a_record_is_bounded() -> None:
    assert len(shown("x" * 10 * MAX_CHARACTERS)) == MAX_CHARACTERS


def test_a_flood_from_one_place_is_counted(
    written: tuple[logging.Logger, io.StringIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    logger, text = written
    now = 100.0
    monkeypatch.setattr(logs.time, "monotonic", lambda: now)

    def one_place(number: int) -> None:
        logger.warning("refused %d", number)

    for number in range(1000):
        one_place(number)
    logger.warning("another place")
    now += INTERVAL_S
    one_place(1000)
    one_place(1001)
    now += INTERVAL_S
    one_place(1002)
    now += INTERVAL_S
    one_place(1003)
    assert text.getvalue().splitlines() == [
        "WARNING model: refused 0",
        "WARNING model: another place",
        "WARNING model: refused 1000 (and 999 more)",
        "WARNING model: refused 1002 (and 1 more)",
        "WARNING model: refused 1003",
    ]


PROGRAM = """
import logging
from serving.logs import start_logging
start_logging("prompt")
for number in range(100):
    logging.getLogger("serving").warning("stream %s", "a\\n\\x1b[31mINFO forged")
logging.getLogger("serving").debug("not shown")
logging.getLogger("serving").info("shown")
"""


def test_a_model_process_writes_its_log_so() -> None:
    run = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=True)
    first, *others = run.stderr.splitlines()
    assert first == r"WARNING prompt: stream a\n\x1b[31mINFO forged"
    assert others[-1] == "INFO prompt: shown"
    assert len(others) < 50
