"""Two source trees in one run: order of turns, what counts as slower, errors; servers of known delays stand in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import compare_trees
from benchmarks.compare_trees import change, main, serve
from loadtest.driver import Record, Response
from vita_audio.contract.errors import VitaError


@given(st.floats(0.1, 1e4), st.floats(0.1, 1e4))
def test_slower_is_above_0_for_times_and_for_rates(this: float, other: float) -> None:
    assert (change(this, other, more_is_better=False) > 0) == (this > other)
    assert (change(this, other, more_is_better=True) > 0) == (this < other)


def test_turns_alternate_with_equal_seeds_and_figures_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, int]] = []

    @contextmanager
    def served(tree: Path, engines: Path, checkpoint: Path | None, slots: int) -> Iterator[str]:
        yield "other" if tree == tmp_path else "this"

    def run_clients(
        url: str, mode: str, streams: int, requests: int, seed: int, tokens: int
    ) -> tuple[list[Record], float]:
        if seed != 10_000:  # not the warm-up
            asked.append((url, seed))
        slow = 1.1 if url == "this" else 1.0
        response = Response(0.1 * slow, samples=22_050, audible=True, tokens=10, stages_ms={"lm": 50.0})
        return [Record(0.0, 0.2, (response,))] * requests, 1.0

    monkeypatch.setattr(compare_trees, "serve", served)
    monkeypatch.setattr(compare_trees, "run_clients", run_clients)
    (tmp_path / "server").mkdir()
    out = tmp_path / "compared.json"
    options = f"--other {tmp_path} --modes boost --streams 1 --requests 2 --turns 4 --out {out}".split()
    assert main([*options, "--fail-above", "3"]) == 1
    assert main([*options, "--fail-above", "15"]) == main(options) == 0
    assert asked[:8] == [(url, 1000 * turn) for turn, urls in enumerate((("this", "other"), ("other", "this")) * 2)
                         for url in urls]  # fmt: skip
    (row,) = json.loads(out.read_text())["rows"]
    assert (row["this"]["ttfa_ms_p50"], row["other"]["ttfa_ms_p50"]) == pytest.approx((110, 100))
    assert "slowest figure: +10.0%" in capsys.readouterr().out


def test_a_folder_that_is_no_source_tree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--other", str(tmp_path)])
    assert "it has no server/" in capsys.readouterr().err


def test_a_server_that_does_not_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "__main__.py").write_text("raise SystemExit('no engines here')")
    monkeypatch.setattr(compare_trees, "_START_S", 3.0)
    with (
        pytest.raises(VitaError, match=r"(?s)not ready within 3 s.*no engines here"),
        serve(tmp_path, tmp_path, None, 2),
    ):
        pass
