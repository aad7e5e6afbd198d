"""GPU builds without a GPU: options of small builds, and stand-ins for the two compilers."""

from __future__ import annotations

from pathlib import Path

import pytest

from build_engines.options import GpuOptions
from build_engines.pipeline import Build
from build_engines.stages import run_build
from build_engines.tensorrt_audio.build import plan_engines
from build_engines.tensorrt_llm import engines as tensorrt_llm_engines
from build_engines.tensorrt_llm.config_file import check_part
from build_engines.tensorrt_llm.networks.options import NetworkOptions
from vita_audio.contract.errors import VitaError
from vita_audio.decoding.schedule import DecoderConfig
from vita_audio.engines.manifest import MANIFEST
from vita_audio.engines.tensorrt_audio.plan import AudioPlan

TORCH = GpuOptions(engine="torch_cuda", streams=4)
LLM = GpuOptions(engine="tensorrt_llm", streams=4, step_tokens=64)


class Compilers:
    """In place of TensorRT-LLM and TensorRT: write the files they write and record every call."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int, NetworkOptions]] = []
        self.killed_at = ""

    def language_model(self, part: str, checkpoint: Path, out: Path, options: NetworkOptions, rank: int = 0) -> None:
        if part == self.killed_at:
            (out / f"rank{rank}.engine").write_text("half")
            raise KeyboardInterrupt
        check_part(checkpoint)
        self.asked.append((part, rank, options))
        (out / "config.json").write_text(part)
        (out / f"rank{rank}.engine").write_text(f"{part} {options.max_batch_size}")

    def audio(self, graphs: Path, out: Path, config: DecoderConfig, max_batch: int, speech_input: str) -> AudioPlan:
        planned = plan_engines(graphs, config, max_batch, speech_input)
        out.mkdir()
        for name in planned:
            (out / f"{name}.engine").write_text(name)
        plan = AudioPlan("10.14.1.48", "9.0", max_batch, {name: plan for name, (plan, _) in planned.items()})
        (out / "tensorrt_audio.json").write_text(plan.to_json())
        return plan

    def install(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(tensorrt_llm_engines, "build_engine", self.language_model)
        patch.setattr("build_engines.tensorrt_audio.build.build_audio_engines", self.audio)


def ran(build: Build, **options: object) -> list[int]:
    """Numbers of the stages that a build ran, not skipped."""
    numbers: list[int] = []
    run_build(build, on_end=lambda stage, record: numbers.append(stage.number) if record else None, **options)  # type: ignore[arg-type]
    return numbers


def refusal(build: Build) -> str:
    with pytest.raises(VitaError) as caught:
        run_build(build)
    text = str(caught.value)
    assert "\n" not in text
    assert not (build.out / MANIFEST).exists()
    return text
