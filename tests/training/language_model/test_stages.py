"""The four stages at tiny size: what trains, what is copied, exact resume, loss falls, the result serves."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from language_models import request
from training.config import load_config
from training.errors import TrainingError
from training.language_model import stages
from training.language_model.initialise import add_modules, random_weights, with_modules
from training.language_model.prepare import prepare_tokens
from training.language_model.settings import LanguageModelTraining, StageSettings
from training.language_model.stages import stored_as, train_stage
from training.run import Run
from training_lm_data import write_checkpoint, write_conversations
from vita_audio.checkpoint.language_model import load_language_model
from vita_audio.contract.modes import NAMED_MODES
from vita_audio.engines.torch.language_model import TorchLanguageModel
from vita_audio.generation.scheduler import Scheduler
from vita_audio.text.chat_template import PromptBuilder
from vita_audio.text.tokenizer import TextTokenizer


def settings() -> LanguageModelTraining:
    """The tiny configuration on twelve conversations, with high rates."""
    config = load_config("tiny").language_model

    def quick(stage: StageSettings, steps: int, rate: float) -> StageSettings:
        return replace(
            stage, run=replace(stage.run, steps=steps, learning_rate=rate), length=256, mixture={}, token_corruption=0.1
        )

    return replace(
        config,
        merges=100,
        stage1=quick(config.stage1, 30, 5e-3),
        stage2=quick(config.stage2, 8, 5e-3),
        stage3=quick(config.stage3, 8, 3e-3),
        stage4=quick(config.stage4, 8, 5e-4),
    )


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stages")
    write_conversations(folder / "data")
    checkpoint = write_checkpoint(folder / "checkpoint")
    return prepare_tokens(settings(), folder / "data", checkpoint / "speech_tokenizer", folder / "tokens")


@pytest.fixture(scope="module")
def trained(tokens: Path) -> dict[int, Path]:
    """Exports of all four stages."""
    exports: dict[int, Path] = {}
    for number in stages.STAGES:
        folder = tokens.parent / f"stage{number}"
        exports[number] = train_stage(settings(), number, tokens, exports.get(number - 1), folder)
    return exports


def weights(export: Path) -> dict[str, torch.Tensor]:
    return load_language_model(export)[1]


def test_tokens_are_described(tokens: Path) -> None:
    record = json.loads((tokens / "done.json").read_text())
    assert record["train"]["chat"] == 2
    assert record["test"]["tts"] == 1
    assert record["train"]["trained_tokens"] < record["train"]["tokens"]


def test_loss_falls(trained: dict[int, Path]) -> None:
    for number, column in ((1, "loss_backbone"), (2, "loss_mctp_1"), (3, "loss_mctp")):
        rows = (trained[number].parent / "log.csv").read_text().splitlines()
        place = rows[0].split(",").index(column)
        assert float(rows[-1].split(",")[place]) < float(rows[1].split(",")[place]) - 0.1, number
    held_out = (trained[4].parent / "held_out.csv").read_text()
    assert "accuracy_mctp_10" in held_out.splitlines()[0]
    assert (trained[4].parent / "loss.svg").stat().st_size > 1000


def test_modules_grow_and_frozen_weights_stay(trained: dict[int, Path]) -> None:
    modules = [load_language_model(trained[n])[0].mctp_modules for n in (1, 2, 3, 4)]
    assert modules == [0, 1, 10, 10]
    first, second, third, fourth = (weights(trained[n]) for n in (1, 2, 3, 4))
    for name, value in first.items():
        assert torch.equal(second[name], value), name
        assert torch.equal(third[name], value), name
    assert not torch.equal(second["model.layers.3.mlp.up_proj.weight"], third["model.layers.3.mlp.up_proj.weight"])
    assert not torch.equal(third["model.embed_tokens.weight"], fourth["model.embed_tokens.weight"])


def test_what_stage_4_exports_is_a_blend(tokens: Path, trained: dict[int, Path], tmp_path: Path) -> None:
    shutil.copytree(trained[4].parent, tmp_path / "stage4")
    blended = weights(train_stage(replace(settings(), blend=0.25), 4, tokens, trained[3], tmp_path / "stage4"))
    start, end = weights(trained[3]), weights(trained[4])
    for name, value in blended.items():
        assert torch.allclose(value, 0.75 * start[name] + 0.25 * end[name], atol=1e-6), name
    with pytest.raises(TrainingError, match=r"language_model\.blend: 0 must be a share above 0"):
        replace(settings(), blend=0)


def test_new_modules_are_copies() -> None:
    config = with_modules(settings().model.backbone(64), 0)
    backbone = random_weights(config, 0)
    one_config, one = add_modules(config, backbone, 1, 0)
    assert one_config.num_hidden_layers == 4
    for name in ("self_attn.q_proj.weight", "mlp.down_proj.weight"):
        assert torch.equal(one[f"model.layers.3.{name}"], backbone[f"model.layers.2.{name}"])
    assert torch.equal(one["mtp_hidden_norms.0.weight"], torch.ones(64))
    assert one["mtp_projs.0.weight"].std().item() == pytest.approx(0.02, rel=0.1)
    one["model.layers.3.input_layernorm.weight"] += 1
    ten = add_modules(one_config, one, 10, 0)[1]
    for k in range(1, 10):
        assert torch.equal(ten[f"mtp_projs.{k}.weight"], one["mtp_projs.0.weight"])
        name = "input_layernorm.weight"
        assert torch.equal(ten[f"model.layers.{3 + k}.{name}"], one[f"model.layers.3.{name}"])
    with pytest.raises(TrainingError, match="more than the 1"):
        add_modules(with_modules(config, 10), ten, 1, 0)


def test_one_pack_for_each_core_trains_the_same(tokens: Path, tmp_path: Path) -> None:
    config = settings()
    halves = replace(config.stage1, run=replace(config.stage1.run, steps=5), length=128, accumulation=2)
    found: list[dict[str, torch.Tensor]] = []
    for workers in (1, 2, 2):
        folder = tmp_path / str(len(found))
        found.append(weights(train_stage(replace(config, stage1=halves, workers=workers), 1, tokens, None, folder)))
    alone, together, again = found
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, rtol=1e-3, atol=1e-3)
        assert torch.equal(again[name], together[name]), name


class Killed(Exception):
    """What a run dies of in a test."""


class DyingRun(Run):
    """Dies within step 13, after the update and before anything of it is saved."""

    def log(self, **values: object) -> None:
        if self.step == 13:
            raise Killed
        super().log(**values)  # type: ignore[arg-type]


def test_killed_stage_goes_on_exactly(
    tokens: Path, trained: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(stages, "Run", DyingRun)
        with pytest.raises(Killed):
            train_stage(settings(), 1, tokens, None, tmp_path)
    assert not (tmp_path / stages.EXPORT).exists()
    again = weights(train_stage(settings(), 1, tokens, None, tmp_path))
    assert all(torch.equal(again[name], value) for name, value in weights(trained[1]).items())


def test_result_serves_in_every_mode(trained: dict[int, Path]) -> None:
    config, tensors = load_language_model(trained[4])
    tokenizer = TextTokenizer(trained[4] / "tokenizer.json")
    engine = TorchLanguageModel(config, stored_tensors(tensors), slots=1, context=256)
    for pattern in NAMED_MODES.values():
        scheduler = Scheduler(engine, tokenizer.vocabulary.end_tokens)
        stream = scheduler.submit("one", request(PromptBuilder(tokenizer).build("chat", "Hello"), pattern, 24))
        while not scheduler.idle:
            scheduler.step()
        assert 0 < len(stream.tokens) - stream.prompt_tokens <= 24


def stored_tensors(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.float() for name, value in stored_as(tensors, "float16").items()}


def test_share_of_corrupted_codes_is_checked() -> None:
    config = settings()
    with pytest.raises(TrainingError, match=r"stage2\.token_corruption: 1\.0 must be a share"):
        replace(config, stage2=replace(config.stage2, token_corruption=1.0))


def test_weights_that_overflow_are_refused() -> None:
    with pytest.raises(TrainingError, match="do not fit float16"):
        stored_as({"lm_head.weight": torch.tensor([1e6])}, "float16")


def test_stage_refuses_weights_of_another_size(tokens: Path, trained: dict[int, Path], tmp_path: Path) -> None:
    config = settings()
    wider = replace(config, model=replace(config.model, hidden_size=128))
    with pytest.raises(TrainingError, match="not those of the configuration"):
        train_stage(wider, 2, tokens, trained[1], tmp_path)


def test_samples_longer_than_a_pack_are_named(tokens: Path, tmp_path: Path) -> None:
    config = settings()
    short = replace(config, stage2=replace(config.stage2, length=30))
    with pytest.raises(TrainingError, match=r"line 1: \d+ tokens, more than 30"):
        prepare_tokens(short, tokens.parent / "data", tokens.parent / "checkpoint" / "speech_tokenizer", tmp_path)
