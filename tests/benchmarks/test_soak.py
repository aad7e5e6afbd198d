"""The soak: growth between quarters, counters that begin again at a restart, kills in the picture."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import soak
from benchmarks.soak import Kill, Look, counted, draw, summarise


def looked(at_s: float, mib: float, underruns: float = 0.0, **more: float) -> Look:
    return Look(at_s, {"speech_lm": mib, "prompt": 10.0, **more}, 20, 30, 1.0, 0.0, underruns)


def test_growth_is_between_the_quarters_of_whole_servers() -> None:
    looks = [looked(0, 500), *(looked(60 + n, 100 + n) for n in range(8)), looked(90, 0)]
    looks.insert(5, Look(65, {"launcher": 3.0}, 1, 1, 0.0, 0.0))  # between two Tritons
    result = summarise(looks, 60, {})
    assert result["memory"]["speech_lm"] == {"first_mib": 100.5, "last_mib": 106.5, "share": 0.0597}
    assert result["memory"]["all"]["first_mib"] == 110.5
    assert result["threads"] == {"least": 20, "most": 20}
    assert result["left_behind"] == {"running": 1.0, "waiting": 0.0, "threads": 20}


def test_a_counter_goes_on_after_a_restart() -> None:
    assert counted([0, 2, 5, 1, 1, 4]) == 5 + 4
    assert counted([]) == 0


def test_kills_are_on_the_line(tmp_path: Path) -> None:
    looks = [looked(60.0 * n, 100 + n) for n in range(4)]
    draw(looks, [], tmp_path / "plain")
    draw(looks, [Kill(90.0, "prompt", 4.0)], tmp_path / "kills")
    assert "a process is killed" not in (tmp_path / "plain_memory.svg").read_text()
    assert (tmp_path / "kills_memory.svg").read_text().count("a process is killed") >= 1
    assert (tmp_path / "kills_streams.svg").exists()


@pytest.mark.parametrize(
    ("words", "option"), [(["--minutes", "1"], "--minutes"), (["--kill-every", "3"], "--kill-every")]
)
def test_wrong_options(words: list[str], option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        soak.main(["--rate", "1", *words])
    assert f"{option}: " in capsys.readouterr().err
