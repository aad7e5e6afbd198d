"""Every part of a training at tiny size in one command, stopped half-way and resumed: a checkpoint that builds."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from training.__main__ import app
from vita_audio.checkpoint.audio_decoder import load_flow
from vita_audio.checkpoint.check import check_checkpoint
from vita_audio.checkpoint.language_model import load_language_model
from waiting import until

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.skipif(shutil.which("flite") is None, reason="flite is not installed (Debian package flite)"),
    pytest.mark.timeout(1200),  # on a busy machine; alone the file takes a tenth of that
]


def command(folder: Path, *options: str) -> list[str]:
    places = ["--out", str(folder / "out"), "--checkpoint", str(folder / "checkpoint")]
    return ["--config", "tiny", *places, *options]


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    """As a user does."""
    return subprocess.Popen(
        [sys.executable, "-m", "training", *command(folder, *options)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def run(folder: Path, *options: str, status: int = 0) -> str:
    """In this process, which has loaded PyTorch. Returns what was printed."""
    outcome = CliRunner().invoke(app, command(folder, *options))
    assert outcome.exit_code == status, outcome.output
    return outcome.output


def column(path: Path, name: str) -> list[float]:
    with path.open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row[name]]


def row(card: str, part: str) -> str:
    rows = [line for line in card.splitlines() if line.startswith(f"| {part} |")]
    return rows[-1]  # the first tells the sizes


def card_of(checkpoint: Path) -> str:
    return (checkpoint / "README.md").read_text()


@dataclass(frozen=True)
class Trained:
    """A finished training in `folder`, and what the command printed: when it was stopped, and when it went on."""

    folder: Path
    stopped: str
    resumed: str

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint"

    def with_its_sounds(self, folder: Path) -> tuple[Path, str]:
        """A folder for another training, which need not speak the same texts again, and the option for that."""
        shutil.copytree(
            self.folder / "out" / "data" / "audio", folder / "out" / "data" / "audio", copy_function=os.link
        )
        return folder, "--resume"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("training")
    first = start(folder)
    log = folder / "out" / "stage1" / "log.csv"
    try:
        until(lambda: log.exists() or first.poll() is not None, 600)
    finally:
        first.send_signal(signal.SIGTERM)
    stopped = first.communicate(timeout=200)[0]
    assert first.returncode == 3, stopped
    assert not (folder / "checkpoint").exists()
    again = start(folder, "--resume")
    resumed = again.communicate(timeout=600)[0]
    assert again.returncode == 0, resumed
    return Trained(folder, stopped, resumed)


def test_everything_in_one_command(trained: Trained) -> None:
    assert "] flow: done" in trained.resumed
    assert "resumed after" in trained.resumed
    sizes = check_checkpoint(trained.checkpoint)
    assert sizes.language_model.mctp_modules == 10
    card = card_of(trained.checkpoint)
    assert "| stage4 | 8 |" in card
    assert "Not evaluated yet" in card
    for part, name in (("speech_tokenizer", "loss_ctc"), ("vocoder", "loss_mel"), ("stage1", "loss_backbone")):
        losses = column(trained.folder / "out" / part / "log.csv", name)
        assert losses[-1] < losses[0], part


def test_scores_come_into_the_card(trained: Trained) -> None:
    evaluation, before = trained.folder / "out" / "evaluation", card_of(trained.checkpoint)
    evaluation.mkdir()
    (evaluation / "evaluation.md").write_text("# Scores\n\n## Speech\n\nIt hums.\n")
    run(trained.folder, "--only", "checkpoint")
    assert "#### Speech\n\nIt hums." in card_of(trained.checkpoint)
    shutil.rmtree(evaluation)
    run(trained.folder, "--only", "checkpoint")
    assert card_of(trained.checkpoint) == before


def test_a_second_language_model_for_the_same_audio_networks(trained: Trained, tmp_path: Path) -> None:
    options = ("--init-from", str(trained.checkpoint), "--train", "language_model:scratch")
    folder, resume = trained.with_its_sounds(tmp_path / "second")
    output = run(folder, resume, *options, "--set", "data.asr=20")
    assert "] stage1" in output
    assert "] flow" not in output
    for name in ("speech_tokenizer/model.safetensors", "audio_decoder/flow.pt"):
        assert (folder / "checkpoint" / name).exists()
    card = card_of(folder / "checkpoint")
    assert row(card_of(trained.checkpoint), "flow") == row(card, "flow")
    assert "--train language_model:scratch" in card
    assert "vocoder unchanged, flow unchanged, language_model scratch." in card
    kept, own = (load_flow(place / "audio_decoder")[1] for place in (folder / "checkpoint", trained.checkpoint))
    assert all(torch.equal(kept[key], own[key]) for key in own)

    output = run(tmp_path / "other", *options, "--set", "flow.model.encoder_blocks=2", status=1)
    assert "does not fit the configuration" in output


def test_trained_on(trained: Trained, tmp_path: Path) -> None:
    """The same model: its networks, its tokenizer, and stage 4 once more."""
    options = ("--init-from", str(trained.checkpoint), "--train", "language_model,flow", "--set", "flow.run.steps=4")
    folder, resume = trained.with_its_sounds(tmp_path / "third")
    output = run(folder, resume, *options, "--set", "data.text=12")
    assert "stage3" not in output
    third, first_card = folder / "checkpoint", card_of(trained.checkpoint)
    card = card_of(third)
    assert row(first_card, "stage3") == row(card, "stage3")
    assert row(first_card, "stage4") == row(card, "stage4")
    assert row(card, "stage4, continued").startswith("| stage4, continued | 8 |")
    assert row(card, "flow, continued").startswith("| flow, continued | 4 |")
    assert row(first_card, "vocoder") == row(card, "vocoder")
    kept, own = (load_flow(place / "audio_decoder")[1] for place in (third, trained.checkpoint))
    assert 0 < max(float((kept[key] - own[key]).abs().max()) for key in own) < 0.1
    assert (third / "language_model/tokenizer.json").read_bytes() == (
        trained.checkpoint / "language_model/tokenizer.json"
    ).read_bytes()
    assert check_checkpoint(third).repetition_penalty == 1.0
    begun, made = (load_language_model(place / "language_model")[1] for place in (trained.checkpoint, third))
    changes = [float((begun[key] - made[key]).abs().max()) for key in begun]
    assert 0 < max(changes) < 0.1  # eight steps from there, not from new weights

    assert "stage3" not in run(folder, "--list")  # without the option: what is in the folder tells
    wrong = ("--set", "language_model.model.backbone_layers=2", "--out", str(tmp_path / "fourth"))
    output = run(folder, "--init-from", str(trained.checkpoint), "--train", "language_model", *wrong, status=1)
    assert "does not fit the configuration" in output


def test_a_flow_alone_in_its_own_place(trained: Trained, tmp_path: Path) -> None:
    """The checkpoint there is an earlier one, not the one that is asked for."""
    folder, resume = trained.with_its_sounds(tmp_path / "seventh")
    seventh = folder / "checkpoint"
    shutil.copytree(trained.checkpoint, seventh)
    place = ("--init-from", str(seventh))
    output = run(folder, resume, *place, "--train", "flow", "--set", "flow.run.steps=4")
    assert "stage4" not in output
    assert "tokens:" not in output
    card, first_card = card_of(seventh), card_of(trained.checkpoint)
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
        assert (seventh / name).read_bytes() == (trained.checkpoint / name).read_bytes(), name
    moved, own = (load_flow(where / "audio_decoder")[1] for where in (seventh, trained.checkpoint))
    assert 0 < max(float((moved[key] - own[key]).abs().max()) for key in own) < 0.1
    assert "] checkpoint: done" in run(folder, *place, "--train", "flow", "--resume")
    assert "] checkpoint: done" in run(folder, "--resume", "--set", "flow.run.log_every=3")
    assert "flow.run.steps: 4 there, 5 asked" in run(folder, "--resume", "--set", "flow.run.steps=5", status=1)
    assert "holds another training" in run(folder, *place, "--train", "flow,vocoder", "--resume", status=1)
    records = json.loads((seventh / "training.json").read_text())
    del records["tokens"]
    (seventh / "training.json").write_text(json.dumps(records))
    assert "not the records of a training" in run(tmp_path / "eighth", *place, "--train", "flow", status=1)
    assert not (tmp_path / "eighth").exists()


def test_all_of_it_trained_on(trained: Trained, tmp_path: Path) -> None:
    """New codes, for which its language model gets rows made of the old codes'."""
    folder, resume = trained.with_its_sounds(tmp_path / "sixth")
    output = run(
        folder,
        *(resume, "--init-from", str(trained.checkpoint), "--train", "all"),
        *("--set", "speech_tokenizer.run.steps=6", "--set", "vocoder.run.steps=3", "--set", "flow.run.steps=4"),
    )
    assert "new codes occur in" in output
    sixth = folder / "checkpoint"
    card = card_of(sixth)
    assert row(card, "speech_tokenizer, continued").startswith("| speech_tokenizer, continued | 6 |")
    assert row(card, "vocoder, continued").startswith("| vocoder, continued | 3 |")
    assert row(card, "flow") == row(card_of(trained.checkpoint), "flow")
    assert row(card, "flow, continued").startswith("| flow, continued | 4 |")
    assert check_checkpoint(sixth).language_model.mctp_modules == 10
    codec = folder / "out" / "speech_tokenizer" / "speech_tokenizer" / "model.safetensors"
    codec.write_bytes(codec.read_bytes() + b" ")
    assert "flow: was trained on another speech_tokenizer/speech" in run(folder, "--resume", status=1)
    assert "flow: to do" in run(folder, "--list")
