"""FP8 engines of torch_cuda: built, drawn at random, built again; and the checkpoint that simulates them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import typer
from torch import Tensor
from typer.testing import CliRunner

from build_engines.pipeline import Build
from build_engines.random_engines import write_random_engines
from build_engines.torch_cuda.formats import Fp8Parts
from build_engines.torch_cuda.simulate_fp8 import main, simulate_fp8
from gpu_builds import TORCH, ran, refusal
from gpu_machines import CONTAINER
from vita_audio.checkpoint.check import check_checkpoint
from vita_audio.checkpoint.language_model import ReleasedCheckpoint, load_language_model
from vita_audio.checkpoint.sizes import TINY
from vita_audio.contract.errors import EngineError
from vita_audio.engines.gpu_machine import Gpu, GpuMachine
from vita_audio.engines.manifest import check_manifest
from vita_audio.engines.registry import open_language_model
from vita_audio.engines.source import EngineSource
from vita_audio.engines.torch.weights import WEIGHTS_FILE, StoredTensors
from vita_audio.engines.torch_cuda.fp8 import Fp8Matrix, dequantise, quantise
from vita_audio.engines.torch_cuda.weights import MCTP_HEAD, SCALE

pytestmark = pytest.mark.usefixtures("machine")

ALL = replace(TORCH, format="fp8", mctp_head_format="fp8", head="audio")
DOWN = "model.layers.0.mlp.down_proj.weight"


def test_built_and_built_again_in_another_format(checkpoint: Path, tmp_path: Path) -> None:
    build = Build(checkpoint, tmp_path / "gpu", "gpu", context_tokens=64, gpu=ALL)
    assert ran(build) == [1, 2, 3, 4, 5, 6]
    manifest = check_manifest(build.out, checkpoint, "gpu", CONTAINER)
    assert manifest.gpu is not None
    assert manifest.gpu.options["format"] == manifest.gpu.options["mctp_format"] == "fp8"
    assert manifest.gpu.options["mctp_head_format"] == "fp8"
    stored, tensors = StoredTensors(build.out / WEIGHTS_FILE), load_language_model(checkpoint / "language_model")[1]
    first = manifest.gpu.head_first_id
    assert first > 0
    for key, source in ((DOWN, tensors[DOWN]), (MCTP_HEAD, tensors["lm_head.weight"][first:])):
        expected = quantise(source)
        assert torch.equal(stored[key].view(torch.uint8), expected.values.view(torch.uint8))
        assert torch.equal(stored[key + SCALE], expected.scale)
    assert stored["lm_head.weight"].dtype == torch.bfloat16
    open_language_model(EngineSource(build.out, manifest, device="cpu"), 2)
    plain = replace(build, gpu=replace(TORCH, head="audio"))
    assert ran(plain) == [1, 4, 6]
    open_language_model(
        EngineSource(build.out, check_manifest(build.out, checkpoint, "gpu", CONTAINER), device="cpu"), 2
    )


def test_an_old_gpu_runs_fp8_by_arithmetic(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ampere = GpuMachine((Gpu("NVIDIA A100", "8.0", 80 << 30),), "none", "none", "none")
    monkeypatch.setattr("build_engines.pipeline.find_machine", lambda: ampere)
    assert ran(Build(checkpoint, tmp_path / "gpu", "gpu", context_tokens=64, gpu=ALL))


def test_a_weight_that_is_not_finite_is_named(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = ReleasedCheckpoint.read

    def damaged(self: ReleasedCheckpoint, key: str) -> Tensor:
        return read(self, key) * (float("nan") if key == DOWN else 1.0)

    monkeypatch.setattr(ReleasedCheckpoint, "read", damaged)
    build = Build(checkpoint, tmp_path / "gpu", "gpu", context_tokens=64, gpu=ALL)
    assert f"{DOWN}: row 0 holds NaN or infinity" in refusal(build)


def test_random_engines(tmp_path: Path) -> None:
    build = Build(Path("random"), tmp_path / "out", "gpu", 64, 64, ALL)
    manifest = write_random_engines(build, TINY, 3, torch.device("cpu"), CONTAINER)
    stored = StoredTensors(build.out / WEIGHTS_FILE)
    assert stored[DOWN].dtype == stored[MCTP_HEAD].dtype == torch.float8_e4m3fn
    open_language_model(EngineSource(build.out, manifest, device="cpu"), 2)


def test_simulated_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "simulated"
    simulate_fp8(checkpoint, out, Fp8Parts(backbone=True))
    check_checkpoint(out)
    (_, before), (config, after) = (load_language_model(folder / "language_model") for folder in (checkpoint, out))
    made = quantise(before[DOWN])
    assert torch.equal(after[DOWN], dequantise(Fp8Matrix(*made), torch.float32))
    assert not torch.equal(after[DOWN], before[DOWN])
    module = f"model.layers.{config.backbone_layers}.mlp.down_proj.weight"
    for key in (module, "lm_head.weight", "mtp_projs.0.weight", "model.norm.weight"):
        assert torch.equal(after[key], before[key]), key


def test_a_checkpoint_is_not_copied_into_itself(checkpoint: Path, tmp_path: Path) -> None:
    inside = tmp_path / "link" / "simulated"
    (tmp_path / "link").symlink_to(checkpoint)
    before = sorted(checkpoint.rglob("*"))
    for out in (checkpoint / "simulated", inside, checkpoint):
        with pytest.raises(EngineError, match="which would be copied into itself"):
            simulate_fp8(checkpoint, out, Fp8Parts(backbone=True))
    assert sorted(checkpoint.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("--parts", "heads"), "--parts: 'heads' is not valid: choose from"), ((), "config.json: file is missing")],
)
def test_simulation_refuses(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    app = typer.Typer()
    app.command()(main)
    result = CliRunner().invoke(app, [str(tmp_path / "none"), "--out", str(tmp_path / "out"), *arguments])
    assert result.exit_code == 1
    assert message in result.output
    assert not (tmp_path / "out").exists()
