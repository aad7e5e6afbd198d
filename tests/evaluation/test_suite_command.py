"""A published suite from the command line: through a real server, killed half way, compared, and wrong uses."""

from __future__ import annotations

import json
import re
import signal
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import pytest

from client_protocol_double import ProtocolDouble, chunk_text
from evaluation import suite_command
from evaluation.__main__ import main
from evaluation.case import Case
from evaluation.layouts import write_layouts
from evaluation.paper import ROWS
from evaluation.suites.registry import SUITES
from published_suites import MAKERS
from server.launch import TritonServer

JUDGE = ("--judge", "echo the judge said so {}")


@pytest.fixture
def double() -> Iterator[ProtocolDouble]:
    made = ProtocolDouble()
    made.otherwise = "chunks 2"
    yield made
    made.close()


def figures(folder: Path) -> dict[str, object]:
    return json.loads((folder / "suite.json").read_text())


def without_times(folder: Path) -> str:
    """The report but for its speed."""
    return re.sub(r"## Speed.*?(?=\n## |\Z)", "", (folder / "suite.md").read_text(), flags=re.DOTALL)


@pytest.mark.server
def test_every_suite_is_scored_through_a_real_server(server: TritonServer, tmp_path: Path) -> None:
    for name in SUITES:
        MAKERS[name](tmp_path / name, ["the cat"])
        out = tmp_path / f"{name}-out"
        arguments = ["--suite", name, "--data", str(tmp_path / name), "--url", server.grpc_url, "--mode", "turbo"]
        assert main([*arguments, "--max-tokens", "12", "--out", str(out), *JUDGE]) == 0
        found = figures(out)
        assert (found["asked"], found["skipped"]) == (1, {}), name
        assert found["about"]["mode"] == "turbo"  # type: ignore[index]
        part = SUITES[name].parts[0]
        measures = {row.measure for row in ROWS.get((name, part), ())} or {"ASR WER"}
        assert set(found["scores"]) == measures  # type: ignore[call-overload]
        assert all(len(of) == 1 for of in found["parts"].values())  # type: ignore[attr-defined]
        ElementTree.fromstring((out / "suite.svg").read_text())


def test_scores_are_those_computed_by_hand(double: ProtocolDouble, tmp_path: Path) -> None:
    MAKERS["seed-tts"](tmp_path, ["The judge said so", "the judge", "judge said it"])
    out = tmp_path / "out"
    arguments = [
        "--suite",
        "seed-tts",
        "--data",
        str(tmp_path),
        "--url",
        double.url,
        "--out",
        str(out),
        "--mode",
        "boost",
    ]
    assert main([*arguments, "--judge", "printf 'the judge said so %.0s' {}"]) == 0
    found = figures(out)
    assert sorted(map(tuple, found["parts"]["TTS WER"].values())) == [(0, 4), (2, 2), (2, 3)]  # type: ignore[index]
    assert found["scores"]["TTS WER"]["value"] == pytest.approx(4 / 9)  # type: ignore[index]
    text = (out / "suite.md").read_text()
    assert "| TTS WER | 44.44 % |" in text
    assert "| VITA-Audio-Plus-Boost | boost (this run's) | TTS WER | 2.21 % | 44.44 % | TTS table |" in text
    assert "jiwer 4" in text


def test_answers_to_questions_are_judged_as_text_and_by_their_sound(double: ProtocolDouble, tmp_path: Path) -> None:
    MAKERS["llama-questions"](tmp_path, ["the judge", "nobody"])
    double.spoken = "chunks 1"
    arguments = ["--suite", "llama-questions", "--data", str(tmp_path), "--url", double.url, "--out", str(tmp_path)]
    assert main([*arguments, *JUDGE]) == 0
    scores = figures(tmp_path)["scores"]
    assert (scores["S->T"]["value"], scores["S->S"]["value"]) == (0.0, 0.5)  # type: ignore[index]
    assert chunk_text(0, 0).startswith("s0c0")  # what the text said: no answer in it


def test_a_run_killed_half_way_gives_the_same_report(
    double: ProtocolDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    MAKERS["libritts"](tmp_path, [f"text number {number}" for number in range(6)])
    arguments = ["--suite", "libritts", "--data", str(tmp_path), "--url", double.url, *JUDGE]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main([*arguments, "--out", str(whole)]) == 0
    real, ticks = suite_command._tick, []

    def tick(*given: object) -> object:
        advance = real(*given)  # type: ignore[arg-type]

        def killing() -> None:
            advance()
            ticks.append(1)
            if len(ticks) in (2, 8):  # while asking, and while judging
                signal.raise_signal(signal.SIGINT)

        return killing

    monkeypatch.setattr(suite_command, "_tick", tick)
    for _ in range(2):
        assert main([*arguments, "--concurrency", "1", "--out", str(killed)]) == 130
    assert len(list(killed.glob("suite.*"))) == 0
    assert main([*arguments, "--concurrency", "1", "--out", str(killed)]) == 0
    assert without_times(killed).replace("in flight: 1", "in flight: 4") == without_times(whole)
    assert len(double.requests) == 12


def test_two_runs_are_compared_case_by_case(double: ProtocolDouble, tmp_path: Path) -> None:
    MAKERS["libritts"](tmp_path, ["the judge said so"] * 4)
    arguments = ["--suite", "libritts", "--data", str(tmp_path), "--url", double.url]
    before, after = tmp_path / "before", tmp_path / "after"
    assert (
        main([*arguments, "--mode", "boost", "--out", str(before), "--judge", "printf 'the judge said so %.0s' {}"])
        == 0
    )
    more = ["--mode", "turbo", "--out", str(after), "--judge", "printf 'the judge said no %.0s' {}"]
    assert main([*arguments, *more, "--compare", str(before / "suite.json")]) == 0
    text = (after / "suite.md").read_text()
    assert "| TTS WER | 0.00 % | 25.00 % | +25.00 | +25.00 to +25.00 | worse | 4 |" in text
    assert "| mode | boost | turbo |" in text
    (change,) = figures(after)["changes"]  # type: ignore[misc]
    assert (change["value"], change["cases"]) == (0.25, 4)


def test_a_new_line_in_a_manifest_moves_no_answer(double: ProtocolDouble, tmp_path: Path) -> None:
    """Ids are numbers of lines there. The texts ask for sounds of 1, 2, ... chunks, which the judge counts."""
    data = tmp_path / "manifest.jsonl"
    count = "import soundfile, sys; print('chunks', round(10 * soundfile.info(sys.argv[1]).duration))"
    arguments = ["--suite", "manifest", "--data", str(data), "--url", double.url, "--out", str(tmp_path / "out")]
    for texts in (["chunks 1", "chunks 3"], ["chunks 2", "chunks 1", "chunks 3"]):
        data.write_text("".join(json.dumps({"kind": "tts", "text": text}) + "\n" for text in texts))
        assert main([*arguments, "--judge", f'{sys.executable} -c "{count}" {{}}']) == 0
        (parts,) = figures(tmp_path / "out")["parts"].values()  # type: ignore[attr-defined]
        assert [errors for errors, _ in parts.values()] == [0] * len(texts)
    assert len(double.requests) == 5


def test_a_judge_that_is_down_loses_nothing(
    double: ProtocolDouble, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    MAKERS["libritts"](tmp_path, ["one", "two"])
    arguments = ["--suite", "libritts", "--data", str(tmp_path), "--url", double.url, "--out", str(tmp_path)]
    assert main([*arguments, "--judge", "false {}"]) == 1
    assert "error: the judge false ended with status 1" in capsys.readouterr().err
    assert main([*arguments, *JUDGE]) == 0
    assert len(double.requests) == 2  # what was said is still there


def test_skipped_cases_are_counted(double: ProtocolDouble, tmp_path: Path) -> None:
    MAKERS["librispeech"](tmp_path, ["one", "two", "three"])
    sounds = sorted(tmp_path.rglob("*.flac"))
    sounds[0].unlink()
    sounds[1].write_text("no sound")
    arguments = ["--suite", "librispeech", "--data", str(tmp_path), "--url", double.url, "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    text = (tmp_path / "out" / "suite.md").read_text()
    assert "- cases: 3, scored 1, skipped 2" in text
    assert "| the sound is missing | 1 |" in text


def test_a_run_without_a_score_says_why_and_fails(
    double: ProtocolDouble, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    MAKERS["libritts"](tmp_path, ["one", "two"])
    arguments = ["--suite", "libritts", "--data", str(tmp_path), "--url", double.url, "--out", str(tmp_path / "out")]
    assert main([*arguments, "--max-tokens", "0", *JUDGE]) == 1
    err = capsys.readouterr().err
    assert "error: no case was scored; the first: MAX_TOKENS: 0 is not valid" in err
    assert "| the request is not valid: it must be from 1" in (tmp_path / "out" / "suite.md").read_text()


def test_notes_stand_in_the_report_and_the_paper_not_beside_generated_speech(
    double: ProtocolDouble, tmp_path: Path
) -> None:
    write_layouts([Case("a", "tts", "en", "one")], tmp_path / "data")
    arguments = [
        "--suite",
        "libritts",
        "--data",
        str(tmp_path / "data"),
        "--url",
        double.url,
        "--out",
        str(tmp_path),
        *JUDGE,
    ]
    assert main([*arguments, "--note", "a busy machine"]) == 0
    text = (tmp_path / "suite.md").read_text()
    assert "- **a busy machine**" in text
    assert "- **generated speech in the layout of this suite" in text
    assert "## The paper" not in text


def test_answers_in_another_language_are_noted(double: ProtocolDouble, tmp_path: Path) -> None:
    MAKERS["aishell"](tmp_path, ["你好", "世界"])
    assert main(["--suite", "aishell", "--data", str(tmp_path), "--url", double.url, "--out", str(tmp_path)]) == 0
    assert "2 of 2 answers are not in the suite's language (zh)" in (tmp_path / "suite.md").read_text()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--data", "nowhere"], "nowhere does not exist"),
        (["--limit", "0"], "--limit 0 is not valid"),
        (["--mode", "quick"], "quick"),
        (["--compare", "nowhere.json"], "--compare nowhere.json"),
        (["--judge", "whisper"], "--judge 'whisper' is not valid"),
        (["--part", "dev"], "test-clean"),
    ],
)
def test_a_wrong_use_is_one_line(
    more: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    MAKERS["libritts"](tmp_path, ["one"])
    given = ["--suite", "libritts", "--data", str(tmp_path), "--url", "127.0.0.1:1", "--patience", "0.2"]
    assert main([*given, "--out", str(tmp_path / "out"), *JUDGE, *more]) == 1
    err = capsys.readouterr().err
    assert said in err
    assert err.count("error:") == 1
    assert "Traceback" not in err
