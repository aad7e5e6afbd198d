"""The evaluation: distance, thresholds, report, and the whole command against a real server."""

from __future__ import annotations

import json
import math
import shutil
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evaluation.__main__ import main
from evaluation.case import KINDS
from evaluation.cepstra import cepstra, distance_db
from evaluation.dialogues import TurnOutcome, load_dialogues, score_dialogues
from evaluation.errors import EvaluationError
from evaluation.held_out import load_cases
from evaluation.picture import Panel, Point, draw
from evaluation.report import write_report
from evaluation.scores import Scores, TeacherScores
from evaluation.thresholds import thresholds
from training.config import load_config
from training.data.generate import run

FEW = replace(
    load_config("tiny").data, tts=2, asr=2, spoken_chat=3, typed_chat=1, text=1, asr_questions=1, tts_answers=1,
    test_tts=1, test_asr=1, test_spoken_chat=2, test_typed_chat=1, test_text=1, test_spoken_dialogues=2,
    test_text_dialogues=2,
)  # fmt: skip
TEACHER = TeacherScores(tts={"domain": 0.02, "flat": 0.25}, spoken=0.95, typed=0.95)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("flite") is None:
        pytest.skip("flite is not installed")
    folder = tmp_path_factory.mktemp("data")
    run(FEW, folder)
    return folder


def good_scores(mode: str) -> Scores:
    return Scores(
        label="model",
        mode=mode,
        requests=10,
        asr_wer=0.04,
        tts_wer={"domain": 0.05, "flat": 0.3},
        codec_wer={"domain": 0.03, "flat": 0.27},
        one_shot_wer=0.05,
        spoken_to_text=0.95,
        spoken_to_speech=0.9,
        spoken_by_family={"addition": {"text": 1.0, "speech": 0.5, "asked": 2}},
        lm_tokens_per_s=100.0,
    )


def tone(frequency_hz: float, seconds: float = 0.5, rate_hz: int = 16_000) -> np.ndarray:
    times = np.arange(round(seconds * rate_hz)) / rate_hz
    return (0.3 * np.sin(2 * np.pi * frequency_hz * times)).astype(np.float32)


def test_distance_is_zero_to_itself_whatever_the_speed() -> None:
    words = np.concatenate([tone(300), tone(900), tone(2000)])
    slower = np.concatenate([tone(300, 0.7), tone(900, 0.6), tone(2000, 0.8)])
    other = np.concatenate([tone(2000), tone(300), tone(900)])
    here = cepstra(words, 16_000)
    assert distance_db(here, here) == pytest.approx(0.0, abs=1e-4)
    assert distance_db(here, cepstra(words * np.float32(0.5), 16_000)) < 0.5  # the level does not count
    assert distance_db(here, cepstra(slower, 16_000)) < 0.3 * distance_db(here, cepstra(other, 16_000))


def test_distance_takes_any_rate_and_no_sound_is_infinitely_far() -> None:
    here = cepstra(tone(500), 16_000)
    assert distance_db(here, cepstra(tone(500, rate_hz=22_050), 22_050)) < 1.0
    assert distance_db(here, np.zeros((0, 13))) == math.inf


def test_distance_equals_the_plain_recursion() -> None:
    draw_ = np.random.default_rng(0)
    first, second = draw_.standard_normal((7, 13)), draw_.standard_normal((5, 13))
    local = 10 / np.log(10) * np.sqrt(2 * ((first[:, None] - second[None]) ** 2).sum(-1))
    best: dict[tuple[int, int], tuple[float, int]] = {}
    for i in range(7):
        for j in range(5):
            before = [best[at] for at in ((i - 1, j - 1), (i - 1, j), (i, j - 1)) if at in best] or [(0.0, 0)]
            total, steps = min(before, key=lambda value: value[0])
            best[i, j] = (total + local[i, j], steps + 1)
    assert distance_db(first, second) == pytest.approx(best[6, 4][0] / best[6, 4][1])


def test_good_scores_pass_every_threshold_and_each_fault_fails_its_own() -> None:
    rows = {mode: good_scores(mode) for mode in ("vanilla", "boost", "turbo")}
    found = thresholds(rows, TEACHER)
    assert len(found) == 19
    assert all(threshold.passed for threshold in found)
    for field, value, failed in (
        ("asr_wer", 0.2, {"boost: ASR word error rate", "boost worse than vanilla: ASR"}),
        ("spoken_to_text", 0.89, {"boost: spoken question to text", "boost worse than vanilla: spoken to text"}),
        ("one_shot_wer", 0.0, {"boost: streamed TTS above one-shot decode"}),
    ):
        worse = {**rows, "boost": replace(rows["boost"], **{field: value})}
        assert {found.name for found in thresholds(worse, TEACHER) if not found.passed} == failed


def test_what_was_not_measured_has_no_threshold() -> None:
    assert thresholds({"vanilla": Scores("model", "vanilla")}, TeacherScores()) == []


def test_the_report_is_valid_and_says_which_thresholds_are_missed(tmp_path: Path) -> None:
    rows = [good_scores("vanilla"), replace(good_scores("boost"), asr_wer=0.5, lm_tokens_per_s=250.0)]
    write_report(tmp_path, rows, TEACHER, {"machine": "a <test> machine"})
    text = (tmp_path / "evaluation.md").read_text()
    assert "| boost: ASR word error rate | 50.0 % | at most 10.0 % | MISSED |" in text
    assert "| model | boost | 50.0 % | 5.0 % | 30.0 % |" in text
    assert "| 2.50 |" in text
    assert text.count("| model | codec | - | 3.0 % | 27.0 % |") == 1
    figures = json.loads((tmp_path / "evaluation.json").read_text())
    assert [row["mode"] for row in figures["scores"]] == ["vanilla", "boost"]
    assert figures["scores"][0]["tts_distance_db"] is None  # not measured
    picture = ElementTree.fromstring((tmp_path / "quality_speed.svg").read_text())
    points = [element for element in picture.iter() if element.get("id") == "series"]
    assert len(points) == 4
    for table in text.split("## ")[1:]:
        lines = [line for line in table.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) == 1, table


def test_a_picture_without_figures_is_still_a_picture() -> None:
    ElementTree.fromstring(draw([Panel("a & b", "y", (Point("p", "boost", math.nan, 1.0),))], "x"))


def test_cases_are_the_test_split_and_the_same_each_time(data: Path) -> None:
    cases = load_cases(data, 10)
    assert {case.kind for case in cases} == set(KINDS)
    assert cases == load_cases(data, 10)
    assert all(case.id.startswith("test-") for case in cases)
    assert all((case.text is None) != (case.audio is None) for case in cases)
    assert len(load_cases(data, 1)) == len(KINDS)


def test_dialogues_are_scored_by_depth_and_by_what_they_need() -> None:
    outcomes = [
        TurnOutcome("id", "boost", False, depth, memory, "", "", "", right)
        for depth, memory, right in ((1, False, True), (2, True, True), (2, True, False), (3, True, False))
    ]
    scores = good_scores("boost")
    score_dialogues(outcomes, scores)
    assert scores.dialogues == {
        "text turn 1": {"right": 1.0, "asked": 1},
        "text turn 2": {"right": 0.5, "asked": 2},
        "text turn 3": {"right": 0.0, "asked": 1},
        "text all": {"right": 0.5, "asked": 4},
        "text memory": {"right": pytest.approx(1 / 3), "asked": 3},
    }
    (missed,) = [t for t in thresholds({"boost": scores}, TEACHER) if "memory" in t.name]
    assert not missed.passed


def test_a_missing_sound_is_named(data: Path, tmp_path: Path) -> None:
    shutil.copy(data / "chat.jsonl", tmp_path)
    with pytest.raises(EvaluationError, match=r"flac.* missing"):
        load_cases(tmp_path, 2)


@pytest.mark.server
def test_the_command_evaluates_a_real_server(
    data: Path, engines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pocketsphinx")
    arguments = ["--data", str(data), "--engines", f"tiny={engines}", "--modes", "vanilla", "turbo", "--limit", "1"]
    assert main([*arguments, "--processes", "1", "--out", str(tmp_path)]) == 0, capsys.readouterr().err
    figures = json.loads((tmp_path / "evaluation.json").read_text())
    assert [(row["label"], row["mode"]) for row in figures["scores"]] == [("tiny", "vanilla"), ("tiny", "turbo")]
    for row in figures["scores"]:
        assert row["requests"] == len(KINDS)
        assert row["lm_tokens_per_s"] > 0
        assert row["asr_wer"] is not None
        assert row["tts_wer"].keys() == row["codec_wer"].keys() == {"domain", "flat"}
        assert {"spoken turn 1", "text turn 2", "text all"} <= row["dialogues"].keys()
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    single = [answer for answer in answers if answer["kind"] != "dialogue"]
    assert len(single) == 2 * len(KINDS)
    assert {answer["kind"] for answer in single} == set(KINDS)
    turns = [answer for answer in answers if answer["kind"] == "dialogue"]
    held = load_dialogues(data, 1)
    assert len(held) == 2
    assert len(turns) == 2 * sum(len(sample.turns) for sample in held)
    assert "Dialogues" in (tmp_path / "evaluation.md").read_text()


def test_a_data_folder_that_is_none_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(tmp_path)]) == 1
    assert "chat.jsonl does not exist" in capsys.readouterr().err
