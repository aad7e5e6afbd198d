"""Asking a server of known delays the cases: what comes back, the driver's times, errors."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from evaluation.serving import MAX_TOKENS, ask_all
from loadtest_known_server import mixed
from loadtest_runs import Known, wait_for
from vita_client import ClientError


def case(seed: int) -> Any:
    """As a `Case`, with a seed that is chosen: the server's delays go by it."""
    return SimpleNamespace(text="Hello.", audio=None, task="tts", seed=seed, id=seed)


def test_outcomes_in_order_with_ttfa_to_the_first_audible_response(tmp_path: Path) -> None:
    with Known("mixed", tmp_path) as server:
        plain, silent = ask_all(server.url, [case(6), case(4)], "boost", warm_up=1)
        wait_for(lambda: len(server.sent()) == 2)
    assert (plain.case.seed, silent.case.seed, plain.mode, plain.reason) == (6, 4, "boost", "end_token")
    assert plain.text == "word " * len(mixed(6).chunks)
    assert len(plain.tokens) == 2 * len(mixed(6).chunks)
    assert len(plain.pcm) / plain.rate_hz == pytest.approx(sum(s for _, s in mixed(6).chunks), abs=1e-3)
    assert plain.lm_ms == 10.0 * len(mixed(6).chunks)
    assert silent.first_audio_ms is not None
    first_s, second_s = (gap_s for gap_s, _ in mixed(4).chunks[:2])
    assert silent.first_audio_ms >= (first_s + second_s) * 1e3 - 5  # the first response is silent throughout
    assert MAX_TOKENS >= 100


def test_a_stream_that_fails_is_raised(tmp_path: Path) -> None:
    with Known("mixed", tmp_path) as server, pytest.raises(ClientError) as raised:
        list(ask_all(server.url, [case(0)], "boost", warm_up=0))
    assert raised.value.code == "server_full"
