"""The shared training loop: schedule, exact resume, stop, full disk, logs."""

from __future__ import annotations

import csv
import os
import signal
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from training.errors import Stopped, TrainingError
from training.logs import Table, duration
from training.run import Run, RunSettings, Shuffle, adamw, clip, set_seeds, step_generator
from training.snapshots import Snapshots

SETTINGS = RunSettings(steps=12, learning_rate=0.05, weight_decay=0.1, log_every=2, save_every=5, evaluate_every=6)


def train(folder: Path, stop_at: int | None = None, settings: RunSettings = SETTINGS) -> dict[str, torch.Tensor]:
    """Fit a small network with dropout (it uses the global generator); returns its weights."""
    set_seeds(settings.seed)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    optimizer = adamw([(model[0].parameters(), 1.0), (model[2].parameters(), 10.0)], settings)
    run = Run(folder, settings, {"model": model, "optimizer": optimizer}, [optimizer], identity={"width": 8})
    for step in run:
        x = torch.from_numpy(step_generator(settings.seed, step).normal(size=(16, 4)).astype("float32"))
        loss = (model(x) - x.sum(1, keepdim=True)).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        clip(model, settings)
        optimizer.step()
        run.log(loss=loss, tokens=16)
        if run.evaluation_due:
            run.record("held_out", {"loss": loss.item()})
        if step + 1 == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
    return {name: value.clone() for name, value in model.state_dict().items()}


def steps_of(path: Path) -> list[int]:
    with path.open(newline="") as file:
        return [int(row["step"]) for row in csv.DictReader(file)]


def test_rate_warms_up_then_falls_to_the_floor() -> None:
    settings = RunSettings(steps=100, learning_rate=2.0, warmup=0.1)
    rates = [settings.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9] == rates[10] == 2.0
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert rates[-1] == pytest.approx(0.2, rel=0.01)


def test_stopped_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole")
    with pytest.raises(Stopped, match="step 7 of 12"):
        train(tmp_path / "parts", stop_at=7)
    assert not (tmp_path / "parts" / "done.json").exists()
    parts = train(tmp_path / "parts")
    assert (tmp_path / "parts" / "done.json").exists()
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=0, atol=0)
    assert steps_of(tmp_path / "parts" / "log.csv") == [2, 4, 6, 8, 10, 12]
    assert steps_of(tmp_path / "parts" / "held_out.csv") == [6, 12]
    picture = ElementTree.parse(tmp_path / "parts" / "loss.svg").getroot()
    assert picture.tag.endswith("svg")


def test_killed_run_goes_on_from_its_last_snapshot(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole")
    train(tmp_path / "parts")
    Snapshots(tmp_path / "parts" / "snapshots")._path(12).unlink()  # as if killed between the last two snapshots
    parts = train(tmp_path / "parts")
    assert all(torch.equal(parts[name], whole[name]) for name in whole)
    assert steps_of(tmp_path / "parts" / "log.csv") == [2, 4, 6, 8, 10, 12]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": 20}, "steps: 12 there, 20 asked"),
        ({"learning_rate": 0.01}, "learning_rate: 0.05 there, 0.01 asked"),
        ({"seed": 1}, "seed: 42 there, 1 asked"),
        ({"clip": 2.0}, "clip: 1.0 there, 2.0 asked"),
    ],
)
def test_other_settings_do_not_resume(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    train(tmp_path)
    with pytest.raises(TrainingError, match=f"other settings.*\n  {words}$"):
        train(tmp_path, settings=replace(SETTINGS, **change))
    train(tmp_path, settings=replace(SETTINGS, log_every=5, save_every=7, evaluate_every=4))


def test_multiplier_and_decay_groups() -> None:
    model = nn.Linear(3, 2)
    groups = adamw([(model.parameters(), 10.0)], SETTINGS).param_groups
    assert [(g["weight_decay"], g["multiplier"], g["params"][0].dim()) for g in groups] == [(0.1, 10, 2), (0.0, 10, 1)]


def test_loss_that_is_not_a_number_stops(tmp_path: Path) -> None:
    run = Run(tmp_path, RunSettings(steps=4, learning_rate=1.0, log_every=1), {})
    steps = iter(run)
    next(steps)
    run.log(loss=float("nan"))
    with pytest.raises(TrainingError, match="loss is nan before step 1"):
        next(steps)


@pytest.mark.parametrize("spoilt", ["loss", "gradient", "weight"])
def test_no_bad_snapshot_follows_a_good_one(tmp_path: Path, spoilt: str) -> None:
    """Rows of the log are far apart: the snapshot comes first."""
    model = nn.Linear(2, 1)
    settings = RunSettings(steps=9, learning_rate=1.0, log_every=9, save_every=2)
    optimizer = adamw([(model.parameters(), 1.0)], settings)
    run = Run(tmp_path, settings, {"model": model, "optimizer": optimizer}, [optimizer])

    def train_on() -> None:
        for step in run:
            size = torch.tensor(float("inf") if step == 3 and spoilt == "gradient" else 1.0)
            optimizer.zero_grad()
            (model(torch.ones(2)).sum() * size).backward()
            clip(model, settings)
            optimizer.step()
            run.log(loss=float("nan") if step == 3 and spoilt == "loss" else 1.0)
            if step == 3 and spoilt == "weight":
                with torch.no_grad():
                    model.weight.fill_(float("inf"))

    with pytest.raises(TrainingError, match="the last good snapshot is kept"):
        train_on()
    assert [path.stem for path in sorted((tmp_path / "snapshots").iterdir())] == ["step_00000002"]


def test_full_disk_leaves_the_earlier_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Snapshots(tmp_path)
    state: Mapping[str, Any] = {"model": nn.Linear(2, 2)}
    store.save(1, {}, state)
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(TrainingError, match="No space left on device"):
        store.save(2, {}, state)
    assert store.steps() == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001.pt"]


def test_unreadable_snapshot_is_one_clear_error(tmp_path: Path) -> None:
    torch.save({"header": {}}, tmp_path / "step_00000003.pt")
    with pytest.raises(TrainingError, match="cannot go on from this snapshot"):
        Snapshots(tmp_path).load(3, {"model": nn.Linear(2, 2)})


def test_only_the_newest_snapshots_stay(tmp_path: Path) -> None:
    store = Snapshots(tmp_path, keep=2)
    for step in (1, 2, 10):
        store.save(step, {}, {})
    assert store.steps() == [2, 10]


def test_shuffle_visits_everything_once_per_epoch() -> None:
    shuffle = Shuffle(7, seed=3)
    epochs = [[shuffle[e * 7 + i] for i in range(7)] for e in range(3)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert Shuffle(7, seed=3)[16] == epochs[2][2]
    with pytest.raises(TrainingError, match="empty"):
        Shuffle(0, seed=3)


def test_table_takes_new_columns_and_survives_a_cut_line(tmp_path: Path) -> None:
    table = Table(tmp_path / "log.csv")
    table.append(1, {"loss": 2.0})
    table.append(2, {"loss": 1.0, "loss_mctp": 3.0})
    with (tmp_path / "log.csv").open("a") as file:
        file.write("garb")
    resumed = Table(tmp_path / "log.csv")
    resumed.truncate(2)
    resumed.append(3, {"loss": 0.5})
    again = Table(tmp_path / "log.csv")
    assert again.column("loss") == [(1, 2.0), (2, 1.0), (3, 0.5)]
    assert again.column("loss_mctp") == [(2, 3.0)]


def test_durations_for_people() -> None:
    assert [duration(s) for s in (5.4, 65, 3_700)] == ["5 s", "1 min 05 s", "1 h 01 min"]
