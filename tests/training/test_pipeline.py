"""Every part of a training at tiny size in one command, stopped half-way and resumed: a checkpoint that builds."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from vita_audio.checkpoint.audio_decoder import load_flow
from vita_audio.checkpoint.check import check_checkpoint
from vita_audio.checkpoint.language_model import load_language_model

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(shutil.which("flite") is None, reason="flite is not installed (Debian package flite)")


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    places = ["--out", str(folder / "out"), "--checkpoint", str(folder / "checkpoint")]
    return subprocess.Popen(
        [sys.executable, "-m", "training", "--config", "tiny", *places, *options],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def column(path: Path, name: str) -> list[float]:
    with path.open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row[name]]


def row(card: str, part: str) -> str:
    rows = [line for line in card.splitlines() if line.startswith(f"| {part} |")]
    return rows[-1]  # the first tells the sizes


@pytest.mark.timeout(1200)  # on a busy machine; alone it takes an eighth of that
def test_everything_in_one_command(tmp_path: Path) -> None:
    first = start(tmp_path)
    log = tmp_path / "out" / "stage1" / "log.csv"
    deadline = time.monotonic() + 200
    while not log.exists() and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    first.send_signal(signal.SIGTERM)
    output = first.communicate(timeout=60)[0]
    assert first.returncode == 3, output
    assert not (tmp_path / "checkpoint").exists()

    again = start(tmp_path, "--resume")
    output = again.communicate(timeout=250)[0]
    assert again.returncode == 0, output
    assert "] flow: done" in output
    assert "resumed after" in output
    sizes = check_checkpoint(tmp_path / "checkpoint")
    assert sizes.language_model.mctp_modules == 10
    card = (tmp_path / "checkpoint" / "README.md").read_text()
    assert "| stage4 | 8 |" in card
    assert "Not evaluated yet" in card
    for part, name in (("speech_tokenizer", "loss_ctc"), ("vocoder", "loss_mel"), ("stage1", "loss_backbone")):
        losses = column(tmp_path / "out" / part / "log.csv", name)
        assert losses[-1] < losses[0], part

    (tmp_path / "out" / "evaluation").mkdir()
    (tmp_path / "out" / "evaluation" / "evaluation.md").write_text("# Scores\n\n## Speech\n\nIt hums.\n")
    third = start(tmp_path, "--only", "checkpoint")
    output = third.communicate(timeout=60)[0]
    assert third.returncode == 0, output
    card = (tmp_path / "checkpoint" / "README.md").read_text()
    assert "#### Speech\n\nIt hums." in card

    # A second language model for the same audio networks.
    shutil.rmtree(tmp_path / "out" / "evaluation")
    (tmp_path / "second").mkdir()
    second = ("--init-from", str(tmp_path / "checkpoint"), "--train", "language_model:scratch")
    fourth = start(tmp_path / "second", *second, "--set", "data.asr=20")
    output = fourth.communicate(timeout=250)[0]
    assert fourth.returncode == 0, output
    assert "] stage1" in output
    assert "] flow" not in output
    for name in ("speech_tokenizer/model.safetensors", "audio_decoder/flow.pt"):
        assert (tmp_path / "second" / "checkpoint" / name).exists()
    first_card, second_card = card, (tmp_path / "second" / "checkpoint" / "README.md").read_text()
    assert row(first_card, "flow") == row(second_card, "flow")
    assert "--train language_model:scratch" in second_card
    assert "vocoder unchanged, flow unchanged, language_model scratch." in second_card
    kept, own = (load_flow(tmp_path / place / "audio_decoder")[1] for place in ("second/checkpoint", "checkpoint"))
    assert all(torch.equal(kept[key], own[key]) for key in own)

    other = start(tmp_path / "other", *second, "--set", "flow.model.encoder_blocks=2")
    output = other.communicate(timeout=60)[0]
    assert other.returncode == 1
    assert "does not fit the configuration" in output

    # The same model, trained on: its networks, its tokenizer, and stage 4 once more.
    (tmp_path / "third").mkdir()
    again = ("--init-from", str(tmp_path / "checkpoint"), "--train", "language_model,flow", "--set", "flow.run.steps=4")
    fifth = start(tmp_path / "third", *again, "--set", "data.text=12")
    output = fifth.communicate(timeout=250)[0]
    assert fifth.returncode == 0, output
    assert "stage3" not in output
    third = tmp_path / "third" / "checkpoint"
    third_card = (third / "README.md").read_text()
    assert row(first_card, "stage3") == row(third_card, "stage3")
    assert row(first_card, "stage4") == row(third_card, "stage4")
    assert row(third_card, "stage4, continued").startswith("| stage4, continued | 8 |")
    assert row(third_card, "flow, continued").startswith("| flow, continued | 4 |")
    assert row(first_card, "vocoder") == row(third_card, "vocoder")
    kept = load_flow(third / "audio_decoder")[1]
    assert 0 < max(float((kept[key] - own[key]).abs().max()) for key in own) < 0.1
    assert (third / "language_model/tokenizer.json").read_bytes() == (
        tmp_path / "checkpoint/language_model/tokenizer.json"
    ).read_bytes()
    assert check_checkpoint(third).repetition_penalty == 1.0
    begun, made = (load_language_model(place / "language_model")[1] for place in (tmp_path / "checkpoint", third))
    changes = [float((begun[key] - made[key]).abs().max()) for key in begun]
    assert 0 < max(changes) < 0.1  # eight steps from there, not from new weights

    # Its flow alone, in its own place: the checkpoint there is an earlier one, not the one that is asked for.
    shutil.copytree(tmp_path / "checkpoint", tmp_path / "seventh" / "checkpoint")
    place = ("--init-from", str(tmp_path / "seventh" / "checkpoint"))
    flow_alone = start(tmp_path / "seventh", *place, "--train", "flow", "--set", "flow.run.steps=4")
    output = flow_alone.communicate(timeout=250)[0]
    assert flow_alone.returncode == 0, output
    assert "stage4" not in output
    assert "tokens:" not in output
    seventh = tmp_path / "seventh" / "checkpoint"
    card = (seventh / "README.md").read_text()
    for part in ("flow", "vocoder", "stage3", "stage4"):
        assert row(card, part) == row(first_card, part)
    assert row(card, "flow, continued").startswith("| flow, continued | 4 |")
    assert "stage4, continued" not in card
    assert "--train flow" in card
    assert (
        card.split("## Data and licence")[1].split("## How")[0]
        == first_card.split("## Data and licence")[1].split("## How")[0]
    )
    for name in ("language_model/model.safetensors", "speech_tokenizer/model.safetensors"):
        assert (seventh / name).read_bytes() == (tmp_path / "checkpoint" / name).read_bytes(), name
    moved = load_flow(seventh / "audio_decoder")[1]
    assert 0 < max(float((moved[key] - own[key]).abs().max()) for key in own) < 0.1
    finished = start(tmp_path / "seventh", *place, "--train", "flow", "--resume")
    assert "] checkpoint: done" in finished.communicate(timeout=60)[0]
    other = start(tmp_path / "seventh", *place, "--train", "flow,vocoder", "--resume")
    assert "holds another training" in other.communicate(timeout=60)[0]
    records = json.loads((seventh / "training.json").read_text())
    del records["tokens"]
    (seventh / "training.json").write_text(json.dumps(records))
    unknown = start(tmp_path / "eighth", *place, "--train", "flow")
    assert "not the records of a training" in unknown.communicate(timeout=60)[0]
    assert not (tmp_path / "eighth").exists()

    # All of it: new codes, for which its language model gets rows made of the old codes'.
    (tmp_path / "sixth").mkdir()
    deeper = start(
        tmp_path / "sixth",
        *("--init-from", str(tmp_path / "checkpoint"), "--train", "all"),
        *("--set", "speech_tokenizer.run.steps=6", "--set", "vocoder.run.steps=3", "--set", "flow.run.steps=4"),
    )
    output = deeper.communicate(timeout=250)[0]
    assert deeper.returncode == 0, output
    assert "new codes occur in" in output
    sixth = tmp_path / "sixth" / "checkpoint"
    card = (sixth / "README.md").read_text()
    assert row(card, "speech_tokenizer, continued").startswith("| speech_tokenizer, continued | 6 |")
    assert row(card, "vocoder, continued").startswith("| vocoder, continued | 3 |")
    assert row(card, "flow") == row(first_card, "flow")
    assert row(card, "flow, continued").startswith("| flow, continued | 4 |")
    assert check_checkpoint(sixth).language_model.mctp_modules == 10
    listed = start(tmp_path / "third", "--list")  # without the option: what is in the folder tells
    assert "stage3" not in listed.communicate(timeout=60)[0]

    wrong = ("--set", "language_model.model.backbone_layers=2", "--out", str(tmp_path / "fourth"))
    other = start(tmp_path / "third", "--init-from", str(tmp_path / "checkpoint"), "--train", "language_model", *wrong)
    output = other.communicate(timeout=60)[0]
    assert other.returncode == 1
    assert "does not fit the configuration" in output
