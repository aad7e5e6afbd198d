"""Fine-tuning a checkpoint on JSON lines: command line, several processes, resume, wrong data and checkpoints."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from training.__main__ import app
from training.language_model import finetune
from training.language_model.batch import Sample
from training.language_model.finetune_settings import FinetuneSettings
from training.language_model.result import write_result
from training.language_model.token_set import PackStream, TokenSet
from training.run import Run
from training_lm_data import conversation_lines, write_checkpoint, write_conversations, write_lines
from vita_audio.checkpoint.check import check_checkpoint, default_pattern
from vita_audio.checkpoint.language_model import load_language_model
from vita_audio.contract.modes import NAMED_MODES

ROOT = Path(__file__).resolve().parents[3]
#: Six steps of four packs.
OPTIONS = ("--epochs", "4.5", "--length", "128", "--accumulation", "2", "--learning-rate", "1e-3", "--log-every", "2")
SAVING = ("--save-every", "3", "--evaluate-every", "3", "--float32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finetune")
    write_checkpoint(folder / "checkpoint")
    write_conversations(folder / "data")
    return folder


def command(folder: Path, out: Path, *extra: str) -> list[str]:
    places = ("--checkpoint", str(folder / "checkpoint"), "--data", str(folder / "data" / "chat.jsonl"))
    return ["finetune", *places, "--out", str(out), *OPTIONS, *SAVING, *extra]


def run(arguments: list[str]) -> str:
    """In this process."""
    outcome = CliRunner().invoke(app, arguments)
    assert outcome.exit_code == 0, outcome.output
    return outcome.output


def run_together(arguments: list[str], processes: int) -> str:
    """Several processes, as a user starts them."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    launched = subprocess.run(
        [sys.executable, *launcher, "-m", "training", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=240,
        check=False,
    )
    assert launched.returncode == 0, launched.stdout
    return launched.stdout


@pytest.fixture(scope="module")
def alone(folder: Path) -> Path:
    """Fine-tuned by one process, packs of two steps' worth at once."""
    out = folder / "alone"
    run(command(folder, out, "--accumulation", "4"))
    return out


def test_result_is_a_bundle_that_learned(folder: Path, alone: Path) -> None:
    sizes = check_checkpoint(alone / "checkpoint")
    assert sizes.default_pattern == (1, 10, 4, 10)
    rows = (alone / "log.csv").read_text().splitlines()
    place = rows[0].split(",").index("loss")
    assert float(rows[-1].split(",")[place]) < float(rows[1].split(",")[place]) - 1
    before = load_language_model(folder / "checkpoint" / "language_model")[1]
    after = load_language_model(alone / "checkpoint" / "language_model")[1]
    assert all(not torch.equal(before[name], value) for name, value in after.items() if value.dim() > 1)
    assert (alone / "checkpoint" / "audio_decoder" / "flow.pt").exists()


def test_two_processes_train_as_one(folder: Path, alone: Path) -> None:
    out = folder / "together"
    run_together(command(folder, out), processes=2)
    one = load_language_model(alone / "checkpoint" / "language_model")[1]
    two = load_language_model(out / "checkpoint" / "language_model")[1]
    start_from = load_language_model(folder / "checkpoint" / "language_model")[1]
    for name, value in two.items():
        moved = (one[name] - start_from[name]).abs().max()
        assert (value - one[name]).abs().max() < 0.1 * moved + 1e-5, name
    # A snapshot of two processes is read by one: the last three steps again.
    snapshots = out / "snapshots"
    assert sorted(path.name for path in snapshots.iterdir()) == ["step_00000003", "step_00000006"]
    shutil.rmtree(snapshots / "step_00000006")
    output = run(command(folder, out, "--accumulation", "4"))
    assert "3/6 resumed" in output
    again = load_language_model(out / "checkpoint" / "language_model")[1]
    for name, value in again.items():
        moved = (one[name] - start_from[name]).abs().max()
        assert (value - one[name]).abs().max() < 0.1 * moved + 1e-5, name
    # The same command with another number of processes: as many steps, of fewer packs.
    shutil.rmtree(snapshots / "step_00000006")
    assert "3/6 resumed" in run(command(folder, out))
    assert "with 1 processes, but" in fails(command(folder, out, "--accumulation", "3"))


def test_killed_run_goes_on_exactly(folder: Path, alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(Exception):
        pass

    class DyingRun(Run):
        def log(self, **values: object) -> None:
            if self.step == 4:
                raise Killed
            super().log(**values)  # type: ignore[arg-type]

    out = folder / "killed"
    with monkeypatch.context() as patched:
        patched.setattr(finetune, "Run", DyingRun)
        outcome = CliRunner().invoke(app, command(folder, out, "--accumulation", "4"))
    assert isinstance(outcome.exception, Killed)
    assert "3/6 resumed" in run(command(folder, out, "--accumulation", "4"))
    one = load_language_model(alone / "checkpoint" / "language_model")[1]
    two = load_language_model(out / "checkpoint" / "language_model")[1]
    assert all(torch.equal(two[name], value) for name, value in one.items())


def fails(arguments: list[str]) -> str:
    """Runs in this process; the one message of an expected error."""
    outcome = CliRunner().invoke(app, arguments)
    assert outcome.exit_code == 1, outcome.output
    return " ".join(outcome.stderr.split())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"audios": []}, "2 <|audio|> in the messages but 0 audios"),
        ({"audios": ["audio/none.wav", "audio/a0.wav"]}, "none.wav is missing"),
        ({"speaker": "x"}, "unknown keys speaker"),
        (
            {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": ""}], "audios": []},
            "is empty",
        ),
    ],
)
def test_wrong_lines(folder: Path, change: dict[str, Any], words: str) -> None:
    lines = conversation_lines(folder / "data")
    lines[0] |= change
    write_lines(folder / "data" / "wrong.jsonl", lines)
    message = fails([*command(folder, folder / "wrong"), "--data", str(folder / "data" / "wrong.jsonl")])
    assert words in message
    assert "line 1" in message


def test_samples_that_do_not_fit_are_refused_or_skipped(folder: Path) -> None:
    short = ("--length", "40", "--steps", "1", "--accumulation", "1")
    message = fails(command(folder, folder / "short", *short))
    assert "line 1:" in message
    assert "more than 40" in message
    run(command(folder, folder / "skipped", *short, "--skip-long"))
    assert (folder / "skipped" / "checkpoint" / "language_model" / "model.safetensors").exists()


def copy_checkpoint(folder: Path, name: str) -> Path:
    copy = folder / name / "checkpoint"
    write_checkpoint(copy)
    return copy


def test_wrong_checkpoints(folder: Path, alone: Path) -> None:
    missing = fails(command(folder / "nowhere", folder / "x"))
    assert "cannot be read" in missing

    other_k = copy_checkpoint(folder, "other-k")
    config_file = other_k / "language_model" / "config.json"
    config = json.loads(config_file.read_text())
    config_file.write_text(json.dumps({**config, "num_hidden_layers": 15, "num_nextn_predict_layers": 12}))
    assert "weights are missing or of another size" in fails(
        [*command(folder, folder / "x"), "--checkpoint", str(other_k)]
    )
    config_file.write_text(json.dumps({**config, "hidden_size": 128}))
    assert "of another size than config.json says" in fails(
        [*command(folder, folder / "x"), "--checkpoint", str(other_k)]
    )

    # K = 4: a boost burst needs 10 modules.
    weights = load_file(other_k / "language_model" / "model.safetensors")
    dropped = tuple(f"mtp_{kind}.{k}." for kind in ("projs", "embed_norms", "hidden_norms") for k in range(4, 10))
    dropped += tuple(f"model.layers.{index}." for index in range(7, 13))
    kept = {name: value for name, value in weights.items() if not name.startswith(dropped)}
    save_file(kept, other_k / "language_model" / "model.safetensors")
    config_file.write_text(json.dumps({**config, "num_hidden_layers": 7, "num_nextn_predict_layers": 4}))
    message = fails([*command(folder, folder / "x"), "--checkpoint", str(other_k)])
    assert "K = 4" in message

    # Snapshots of K = 10 do not go on with K = 4, even in a mode that K = 4 can do.
    message = fails([*command(folder, alone, "--accumulation", "4"), "--checkpoint", str(other_k), "--mode", "1,4"])
    assert "mtp_inference_mode" in message or "cannot go on" in message or "other settings" in message


def test_codes_must_be_those_of_the_language_model(folder: Path) -> None:
    mixed = copy_checkpoint(folder, "mixed")
    config_file = mixed / "speech_tokenizer" / "config.json"
    config = json.loads(config_file.read_text())
    config_file.write_text(json.dumps({**config, "quantize_vocab_size": 128}))
    weights_file = mixed / "speech_tokenizer" / "model.safetensors"
    weights = load_file(weights_file)
    weights["codebook.weight"] = weights["codebook.weight"][:128].contiguous()
    save_file(weights, weights_file)
    message = fails([*command(folder, folder / "x"), "--checkpoint", str(mixed)])
    assert "has 128 codes, the language model 256" in message


def test_another_data_set_does_not_go_on(folder: Path, alone: Path) -> None:
    lines = conversation_lines(folder / "data")[:9]
    write_lines(folder / "data" / "fewer.jsonl", lines)
    message = fails([*command(folder, alone, "--accumulation", "4"), "--data", str(folder / "data" / "fewer.jsonl")])
    assert "holds a training of other settings" in message


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--learning-rate", "2e-3"), "learning_rate: 0.001 there, 0.002 asked"),
        (("--epochs", "4.6"), "epochs: 4.5 there, 4.6 asked"),
        (("--accumulation", "5"), "--accumulation: 5 with 1 processes"),
        (("--seed", "5"), "seed: 42 there, 5 asked"),
    ],
)
def test_other_settings_do_not_go_on(folder: Path, alone: Path, options: tuple[str, str], words: str) -> None:
    assert words in fails(command(folder, alone, "--accumulation", "4", *options))


def test_another_checkpoint_of_the_same_sizes_does_not_go_on(folder: Path, alone: Path) -> None:
    other = copy_checkpoint(folder, "other-weights")
    weights = load_file(other / "language_model" / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, other / "language_model" / "model.safetensors")
    message = fails([*command(folder, alone, "--accumulation", "4"), "--checkpoint", str(other)])
    assert "other settings; delete it or choose another folder. checkpoint: " in message


def test_another_data_set_of_the_same_length_does_not_go_on(folder: Path, alone: Path) -> None:
    lines = conversation_lines(folder / "data")
    lines[3]["messages"], lines[7]["messages"] = lines[7]["messages"], lines[3]["messages"]
    write_lines(folder / "data" / "likewise.jsonl", lines)
    data = ("--data", str(folder / "data" / "likewise.jsonl"))
    assert "tokens: " in fails([*command(folder, alone, "--accumulation", "4"), *data])


def test_steps_see_all_of_the_data() -> None:
    """Packs close early: more of them than their tokens would fill."""
    samples = [Sample(np.zeros(60, np.int32), np.ones(60, bool))] * 9
    packs = PackStream(TokenSet.of(samples, ["chat"] * 9), 100, seed=0)
    settings = FinetuneSettings(Path(), Path(), Path(), length=100, accumulation=2)
    assert finetune._begun(settings, packs, {})["steps"] == 5  # nine packs
    assert finetune._begun(replace(settings, epochs=2), packs, {})["steps"] == 9


def test_large_weights_are_cut_into_shards(folder: Path, tmp_path: Path) -> None:
    source, result = folder / "checkpoint", tmp_path / "result"
    tensors = load_file(source / "language_model" / "model.safetensors")
    write_result(source, tensors, NAMED_MODES["balance"], None, result, shard_bytes=100_000)
    shards = list((result / "language_model").glob("model-*.safetensors"))
    assert len(shards) > 3
    assert {path.stat().st_mode & 0o777 for path in shards} == {0o644}
    config, again = load_language_model(result / "language_model")
    assert all(torch.equal(again[name], value) for name, value in tensors.items())
    assert again.keys() == tensors.keys()
    assert default_pattern(result / "language_model" / "generation_config.json", config) == NAMED_MODES["balance"]
    assert (result / "speech_tokenizer" / "model.safetensors").exists()
