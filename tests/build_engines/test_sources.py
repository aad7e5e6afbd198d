"""What a stage depends on: its code by its imports, packages, options and files; a change of each runs it again."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from build_engines import sources
from build_engines.options import GpuOptions
from build_engines.pipeline import Build, Stage, StageRecord, stage_inputs
from build_engines.sources import ROOT, code_of, versions_of
from build_engines.stages import CPU_STAGES, gpu_stages

STAGES = {
    "cpu": CPU_STAGES,
    "tensorrt_llm": gpu_stages(GpuOptions(engine="tensorrt_llm")),
    "torch_cuda": gpu_stages(GpuOptions(engine="torch_cuda")),
}
MODULES = sorted({stage.run.partition(":")[0] for stages in STAGES.values() for stage in stages})


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small repository."""
    files = {
        "ours/__init__.py": "",
        "ours/a.py": "from __future__ import annotations\nfrom typing import TYPE_CHECKING\nimport ours.b\n"
        "if TYPE_CHECKING:\n    import ours.types_only\nelse:\n    import ours.otherwise\n",
        "ours/b.py": "import json, yaml\n\ndef f():\n    from ours.deep import c\n    from .deep.d import name\n",
        "ours/deep/__init__.py": "from . import on_import\n",
        "ours/deep/c.py": "import ours.a  # back again\n",
        "ours/deep/d.py": "name = 1\n",
        "ours/deep/on_import.py": "",
        "ours/deep/unused.py": "",
        "ours/otherwise.py": "",
        "ours/types_only.py": "import elsewhere\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_all_that_is_imported_and_nothing_else(tree: Path) -> None:
    code = code_of("ours.a", tree)
    assert set(code.files) == {
        "ours/__init__.py",
        "ours/a.py",
        "ours/b.py",
        "ours/deep/__init__.py",
        "ours/deep/c.py",
        "ours/deep/d.py",
        "ours/deep/on_import.py",
        "ours/otherwise.py",
    }
    assert code.packages == {"yaml"}


def test_comments_docstrings_and_layout_are_no_change(tree: Path) -> None:
    before = code_of("ours.deep.d", tree)
    (tree / "ours/deep/d.py").write_text('"""What it is."""\n# why\nname = (\n    1\n)\n')
    assert code_of("ours.deep.d", tree) == before
    (tree / "ours/deep/d.py").write_text('name = 1\n"no docstring"\n')
    assert code_of("ours.deep.d", tree) != before
    (tree / "ours/deep/d.py").write_text("name = 2\n")
    assert code_of("ours.deep.d", tree) != before


def test_versions_are_of_distributions() -> None:
    assert versions_of(frozenset({"yaml", "nothing_of_that_name"})).keys() == {"PyYAML", "nothing_of_that_name"}
    assert versions_of(frozenset({"nothing_of_that_name"})) == {"nothing_of_that_name": "none"}


def test_no_module_is_forgotten() -> None:
    """Whatever Python loads when it imports the stages' modules is in their code."""
    script = """
import importlib, json, os, sys
import onnx, safetensors.torch, tokenizers, torch, typer, yaml
for module in sys.argv[2:]:
    if os.fork() == 0:
        importlib.import_module(module)
        files = [getattr(m, "__file__", None) for m in list(sys.modules.values())]
        ours = [os.path.relpath(f, sys.argv[1]) for f in files if f and f.startswith(sys.argv[1] + os.sep)]
        os.write(1, (json.dumps([module, ours]) + chr(10)).encode())
        os._exit(0)
    assert os.wait()[1] == 0, module
"""
    run = [sys.executable, "-c", script, str(ROOT), *MODULES]
    lines = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    loaded = dict(json.loads(line) for line in lines)
    assert sorted(loaded) == MODULES
    for module, files in loaded.items():
        packages = [file for file in files if file.startswith(("build_engines/", "vita_audio/"))]
        assert packages
        assert set(packages) <= set(code_of(module).files), module


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, to be changed."""
    root = tmp_path_factory.mktemp("tree")
    for package in ("build_engines", "vita_audio"):
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    return root


@pytest.fixture
def build(copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    """A build whose stages count as having run."""
    monkeypatch.setattr(sources, "ROOT", copied)
    for name in ("language_model/model.safetensors", "language_model/tokenizer.json", "audio_decoder/flow.pt"):
        (tmp_path / "checkpoint" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "checkpoint" / name).write_text(name)
    build = Build(tmp_path / "checkpoint", tmp_path / "out")
    build.work.mkdir(parents=True)
    for number in range(1, 13):
        (build.work / f"stage{number}.json").write_text(json.dumps(asdict(StageRecord("", {}))))
    return build


def inputs_of(build: Build, target: str) -> dict[str, str]:
    """Name of each stage of a target -> hash of its inputs, in a new process."""
    fresh = Build(build.checkpoint, build.out, build.target, build.context_tokens, build.max_tokens, build.gpu)
    return {stage.name: stage_inputs(fresh, stage) for stage in STAGES[target]}


def changed_by(build: Build, target: str, change: Callable[[], Build | None]) -> set[str]:
    """Names of the stages with other inputs after a change."""
    before = inputs_of(build, target)
    after = inputs_of(change() or build, target)
    return {name for name in before if before[name] != after[name]}


@pytest.mark.parametrize("target", ["cpu", "tensorrt_llm"])
def test_a_change_of_any_source_runs_the_stages_that_import_it(
    copied: Path, build: Build, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "package_version", lambda name: "1")  # looking them up takes longer than all else
    codes = {stage.name: code_of(stage.run.partition(":")[0]).files for stage in STAGES[target]}
    every = {file for files in codes.values() for file in files}
    assert {"build_engines/manifest.py", "vita_audio/decoding/schedule.py", "vita_audio/models/flow.py"} <= every
    before = inputs_of(build, target)
    for file in sorted(every):
        text = (copied / file).read_text()
        (copied / file).write_text(text + "\nCHANGED = 1\n")
        after = inputs_of(build, target)
        (copied / file).write_text(text)
        assert {name for name in codes if before[name] != after[name]} == {n for n in codes if file in codes[n]}, file


CHECK = "check checkpoint"


@pytest.mark.parametrize(
    ("target", "file", "stages"),
    [
        ("cpu", "vita_audio/decoding/schedule.py", {"manifest"}),
        ("cpu", "vita_audio/models/vocoder.py", {CHECK, "flow", "vocoder"}),
        ("cpu", "vita_audio/models/speech_tokenizer.py", {CHECK, "speech tokenizer"}),
        ("cpu", "build_engines/onnxruntime/flow.py", {"flow"}),
        ("cpu", "build_engines/onnxruntime/language_model.py", {"language model"}),
        ("cpu", "build_engines/onnxruntime/graph.py", {"speech tokenizer", "language model", "flow", "vocoder"}),
        ("cpu", "build_engines/pipeline.py", set()),
        ("cpu", "build_engines/tensorrt_llm/formats.py", set()),
        ("tensorrt_llm", "vita_audio/decoding/schedule.py", {"check machine", "audio engines", "manifest"}),
        ("tensorrt_llm", "vita_audio/decoding/flow_stream.py", {"check machine", "audio engines", "manifest"}),
        (
            "tensorrt_llm",
            "build_engines/tensorrt_llm/networks/mctp.py",
            {"check machine", "backbone engine", "MCTP engine"},
        ),
        ("torch_cuda", "vita_audio/decoding/schedule.py", {"check machine", "manifest"}),
        ("torch_cuda", "build_engines/torch_cuda/audio.py", {"audio weights"}),
    ],
)
def test_sources_of_stages(copied: Path, build: Build, target: str, file: str, stages: set[str]) -> None:
    path = copied / file
    text = path.read_text()
    try:
        assert changed_by(build, target, lambda: path.write_text(text + "\nCHANGED = 1\n") and None) == stages
    finally:
        path.write_text(text)


MODEL = {"convert backbone", "convert MCTP", "backbone engine", "MCTP engine"}


@pytest.mark.parametrize(
    ("target", "change", "stages"),
    [
        ("cpu", {"context_tokens": 5}, {"tokenizer and limits"}),
        ("cpu", {"max_tokens": 5}, {"tokenizer and limits"}),
        ("cpu", {"target": "gpu"}, {"manifest"}),
        ("tensorrt_llm", {"streams": 5}, {"check machine", "backbone engine", "MCTP engine", "manifest"}),
        ("tensorrt_llm", {"step_tokens": 99}, {"check machine", "backbone engine", "MCTP engine", "manifest"}),
        ("tensorrt_llm", {"candidates": 5}, {"backbone engine", "MCTP engine", "manifest"}),
        ("tensorrt_llm", {"audio_batch": 5}, {"check machine", "audio engines", "manifest"}),
        ("tensorrt_llm", {"format": "fp8"}, {"check machine", "manifest", *MODEL}),
        ("tensorrt_llm", {"mctp_format": "fp8"}, {"check machine", "manifest", *MODEL}),
        ("tensorrt_llm", {"fp8_kv_cache": True}, {"check machine", "manifest", *MODEL}),
        ("tensorrt_llm", {"tp": 2}, {"check machine", "manifest", *MODEL}),
        ("tensorrt_llm", {"head": "full"}, {"check machine", "manifest", *MODEL}),
        ("tensorrt_llm", {"scales": "scales.json"}, {"check machine", "manifest", *MODEL}),
        ("torch_cuda", {"format": "fp8"}, {"check machine", "language model weights", "manifest"}),
        ("torch_cuda", {"mctp_head_format": "fp8"}, {"check machine", "language model weights", "manifest"}),
    ],
)
def test_options_of_stages(
    build: Build, tmp_path: Path, target: str, change: dict[str, object], stages: set[str]
) -> None:
    def other() -> Build:
        if target == "cpu":
            return replace(build, **change)  # type: ignore[arg-type]
        if "scales" in change:
            (tmp_path / "scales.json").write_text("{}")
            return replace(build, gpu=GpuOptions("tensorrt_llm", scales=tmp_path / "scales.json"))
        return replace(build, gpu=replace(build.gpu, **change))  # type: ignore[arg-type]

    assert changed_by(build, target, other) == stages


@pytest.mark.parametrize(
    ("file", "stages"),
    [
        ("language_model/model.safetensors", {CHECK, "language model", "manifest"}),
        ("language_model/tokenizer.json", {CHECK, "language model", "tokenizer and limits", "manifest"}),
        ("language_model/generation_config.json", {CHECK, "language model", "tokenizer and limits", "manifest"}),
        ("audio_decoder/flow.pt", {CHECK, "flow", "vocoder", "manifest"}),
        ("speech_tokenizer/config.json", {CHECK, "speech tokenizer", "manifest"}),
        ("training.json", {"manifest"}),
    ],
)
def test_checkpoint_files_of_stages(build: Build, file: str, stages: set[str]) -> None:
    path = build.checkpoint / file
    path.parent.mkdir(exist_ok=True)
    assert changed_by(build, "cpu", lambda: path.write_text("other") and None) == stages


@pytest.mark.parametrize(
    ("package", "stages"),
    [
        ("onnx", {"speech tokenizer", "language model", "flow", "vocoder"}),
        ("PyYAML", {CHECK, "flow", "vocoder"}),
        ("tokenizers", {CHECK}),
        ("rich", set()),
    ],
)
def test_packages_of_stages(build: Build, monkeypatch: pytest.MonkeyPatch, package: str, stages: set[str]) -> None:
    version = sources.package_version

    def other() -> None:
        monkeypatch.setattr(sources, "package_version", lambda name: "99" if name == package else version(name))

    assert changed_by(build, "cpu", other) == stages


def test_what_is_needed_counts_by_what_it_made(build: Build) -> None:
    def change() -> None:
        record = StageRecord("", {}, {"samples": False})
        (build.work / "stage1.json").write_text(json.dumps(asdict(record)))

    assert changed_by(build, "cpu", change) == {"tokenizer and limits", "manifest"}


def test_stages_are_numbered_in_order() -> None:
    for stages in STAGES.values():
        assert [stage.number for stage in stages] == list(range(1, len(stages) + 1))
        assert all(needed < stage.number for stage in stages for needed in stage.needs)
        assert isinstance(stages[0], Stage)
