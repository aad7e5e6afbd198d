"""The manifest of GPU engines when they are served: each field that does not fit the machine or the decoder."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from build_engines.pipeline import Build
from build_engines.stages import run_build
from gpu_builds import LLM, TORCH, Compilers, ran
from gpu_machines import CONTAINER
from vita_audio.contract.errors import EngineError
from vita_audio.decoding.schedule import DecoderConfig
from vita_audio.engines.gpu_machine import Gpu, GpuMachine
from vita_audio.engines.manifest import MANIFEST, check_manifest, schedule_fields

pytestmark = pytest.mark.usefixtures("machine")

ROOT = Path(__file__).resolve().parents[2]
L40S = Gpu("NVIDIA L40S", "8.9", 46_068 << 20)


@pytest.fixture(scope="module")
def engines(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("engines") / "gpu"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("build_engines.pipeline.find_machine", lambda: CONTAINER)
        Compilers().install(patch)
        run_build(Build(checkpoint, out, "gpu", gpu=LLM))
    return out


@pytest.mark.parametrize(
    ("fields", "machine", "told"),
    [
        ({}, replace(CONTAINER, gpus=(L40S,)), "gpu.compute_capability is '9.0' but NVIDIA L40S has 8.9"),
        ({}, replace(CONTAINER, tensorrt="10.13"), "gpu.tensorrt is '10.14.1.48' but 10.13 is installed"),
        ({}, replace(CONTAINER, tensorrt_llm="none"), "gpu.tensorrt_llm is '1.2.1' but none is installed"),
        ({}, replace(CONTAINER, container="tritonserver 26.06"), "'tritonserver 26.07' but this is tritonserver 26.06"),
        ({"engine": "vllm"}, CONTAINER, "gpu.engine is 'vllm' but this version knows tensorrt_llm and torch_cuda"),
        ({"tp": 2}, CONTAINER, "gpu.tp is 2 but this server drives one GPU"),
        ({"banned_ids": [1]}, CONTAINER, "gpu.banned_ids is '1 ids' but its vocabulary bans"),
        ({"head_first_id": 10**6}, CONTAINER, "gpu.head_first_id is 1000000 but the model has"),
        ({"candidates": 0}, CONTAINER, "gpu.candidates is 0 but the MCTP head has"),
        ({"bytes_beside_slots": -1}, CONTAINER, "gpu.bytes_beside_slots is -1 but it is bytes of a GPU's memory"),
    ],
)
def test_the_server_refuses_by_field(
    engines: Path, tmp_path: Path, fields: dict[str, object], machine: GpuMachine, told: str
) -> None:
    out = tmp_path / "gpu"
    shutil.copytree(engines, out)
    content = json.loads((out / MANIFEST).read_text())
    content["gpu"].update(fields)
    (out / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(EngineError) as error:
        check_manifest(out, target="gpu", machine=machine)
    text = str(error.value)
    assert told in text
    assert "build the engines again" in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("gpus", "found"),
    [
        ((), "there is no GPU here (nvidia-smi lists none)"),
        ((Gpu("V100", "7.0", 1),), "V100 has compute capability 7.0, below 8.0"),
    ],
)
@pytest.mark.parametrize(("engine", "more"), [("tensorrt_llm", ""), ("torch_cuda", " or with --device cpu")])
def test_a_machine_for_no_build_of_them(
    engines: Path, tmp_path: Path, engine: str, more: str, gpus: tuple[Gpu, ...], found: str
) -> None:
    """Building again, which other refusals advise, would not help."""
    content = json.loads((engines / MANIFEST).read_text())
    content["gpu"]["engine"] = engine
    (tmp_path / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(EngineError) as error:
        check_manifest(tmp_path, target="gpu", machine=replace(CONTAINER, gpus=gpus))
    told = f"{engine} engines need a GPU and {found}; start on a machine with one{more}"
    assert str(error.value) == f"{tmp_path / MANIFEST}: {told}"


def test_a_cpu_is_asked_for(engines: Path, checkpoint: Path, tmp_path: Path) -> None:
    """`--device cpu` needs no GPU, but engines that can run there."""
    nothing = GpuMachine((), "none", "none", "none")
    with pytest.raises(EngineError, match=r"gpu\.engine is 'tensorrt_llm' but only torch_cuda engines run on --device"):
        check_manifest(engines, target="gpu", machine=nothing, device="cpu")
    out = tmp_path / "gpu"
    run_build(Build(checkpoint, out, "gpu", gpu=TORCH))
    assert check_manifest(out, target="gpu", machine=nothing, device="cpu").gpu is not None
    with pytest.raises(EngineError, match="there is no GPU here"):
        check_manifest(out, target="gpu", machine=nothing)


def test_packages_of_the_builder_alone_are_not_pinned(engines: Path, tmp_path: Path) -> None:
    out = tmp_path / "gpu"
    shutil.copytree(engines, out)
    content = json.loads((out / MANIFEST).read_text())
    content["versions"] = dict.fromkeys(content["versions"], "0.0")
    (out / MANIFEST).write_text(json.dumps(content))
    assert check_manifest(out, target="gpu", machine=CONTAINER).versions["onnxruntime"] == "0.0"


def test_engines_of_another_schedule_are_refused_and_made_again(
    checkpoint: Path, tmp_path: Path, compilers: Compilers, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = Build(checkpoint, tmp_path / "gpu", "gpu", gpu=LLM)
    run_build(build)
    ours, other = (schedule_fields(config) for config in (DecoderConfig(), DecoderConfig(context_tokens=40)))
    assert check_manifest(build.out, checkpoint, "gpu", CONTAINER, schedule=ours).schedule == ours
    with pytest.raises(EngineError, match=r"schedule\.context_tokens is 30 but this version decodes with 40; build"):
        check_manifest(build.out, checkpoint, "gpu", CONTAINER, schedule=other)

    for package in ("build_engines", "vita_audio"):
        shutil.copytree(ROOT / package, tmp_path / "tree" / package)
    source = tmp_path / "tree" / "vita_audio" / "decoding" / "schedule.py"
    source.write_text(source.read_text().replace("context_tokens: int = 30", "context_tokens: int = 40"))
    monkeypatch.setattr("build_engines.sources.ROOT", tmp_path / "tree")
    assert ran(Build(checkpoint, build.out, "gpu", gpu=LLM)) == [1, 11, 12]

    content = json.loads((build.out / MANIFEST).read_text())
    del content["schedule"]
    (build.out / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(EngineError, match="schedule is None but TensorRT's audio engines are built for the shapes of"):
        check_manifest(build.out, checkpoint, "gpu", CONTAINER, schedule=ours)


def test_a_record_that_is_missing_or_unknown_is_refused(engines: Path, tmp_path: Path) -> None:
    out = tmp_path / "gpu"
    shutil.copytree(engines, out)
    content = json.loads((out / MANIFEST).read_text())

    def told(gpu: object) -> str:
        changed = {key: value for key, value in content.items() if key != "gpu"} | ({"gpu": gpu} if gpu else {})
        (out / MANIFEST).write_text(json.dumps(changed))
        with pytest.raises(EngineError) as error:
            check_manifest(out, target="gpu", machine=CONTAINER)
        return str(error.value)

    assert "gpu is None but a GPU target records what it was built for" in told(None)
    assert "unknown" in told({**content["gpu"], "more": 1})
    assert "'banned_ids'" in told({key: value for key, value in content["gpu"].items() if key != "banned_ids"})
