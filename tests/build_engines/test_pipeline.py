"""The build's runner, with small stages of the tests' own: skipping, resuming, cleaning up, locking."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from build_engines.pipeline import (
    Build,
    Facts,
    Needed,
    Stage,
    build_lock,
    is_done,
    load_record,
    run_stage,
    select,
)
from vita_audio.contract.errors import CheckpointError, EngineError


@pytest.fixture
def build(tmp_path: Path) -> Build:
    for name in ("a/one.txt", "b/two.txt"):
        (tmp_path / "checkpoint" / name).parent.mkdir(parents=True)
        (tmp_path / "checkpoint" / name).write_text(name)
    return Build(tmp_path / "checkpoint", tmp_path / "out")


def _again(build: Build, **changes: int) -> Build:
    """The same build in a later process: nothing is cached."""
    fields = {"context_tokens": build.context_tokens, "max_tokens": build.max_tokens, **changes}
    return Build(build.checkpoint, build.out, build.target, **fields)


def _writer(*names: str) -> Callable[[Build, Path, Needed], Facts]:
    def run(build: Build, folder: Path, needed: Needed) -> Facts:
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(f"{name} of {build.context_tokens}")
        return {"names": [*needed.facts.get("names", []), *names]}

    return run


@pytest.fixture(autouse=True)
def stages_module(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What the stages below run; its source is none of the repository's."""
    module = SimpleNamespace(first=_writer("x.bin", "sub/y.bin"), second=_writer("z.bin"))
    monkeypatch.setitem(sys.modules, "stage_doubles", module)
    return module


FIRST = Stage(1, "first", "stage_doubles:first", reads=("a",), options=("context_tokens",))
SECOND = Stage(2, "second", "stage_doubles:second", reads=("b/two.txt",), needs=(1,))


def test_a_stage_is_done_until_something_it_depends_on_changes(build: Build) -> None:
    assert not is_done(build, FIRST)
    record = run_stage(build, FIRST)
    assert set(record.files) == {"x.bin", "sub/y.bin"}
    assert (build.out / "sub" / "y.bin").read_text() == "sub/y.bin of 4096"
    assert is_done(_again(build), FIRST)
    assert is_done(_again(build, max_tokens=5), FIRST)  # not one of its options
    assert not is_done(_again(build, context_tokens=5), FIRST)

    (build.checkpoint / "b" / "two.txt").write_text("other")
    assert is_done(_again(build), FIRST)
    (build.checkpoint / "a" / "one.txt").write_text("other")
    assert not is_done(_again(build), FIRST)


def test_a_missing_or_changed_file_is_made_again(build: Build) -> None:
    run_stage(build, FIRST)
    (build.out / "x.bin").write_text("damaged")
    assert not is_done(build, FIRST)
    run_stage(build, FIRST)
    assert is_done(build, FIRST)
    (build.out / "x.bin").unlink()
    assert not is_done(build, FIRST)


def test_a_stage_follows_the_stages_it_needs(build: Build, stages_module: SimpleNamespace) -> None:
    with pytest.raises(EngineError, match="stage 1 has not run"):
        run_stage(build, SECOND)
    assert not is_done(build, SECOND)
    run_stage(build, FIRST)
    assert run_stage(build, SECOND).facts == {"names": ["x.bin", "sub/y.bin", "z.bin"]}
    assert is_done(build, SECOND)
    stages_module.first = _writer("x.bin")
    run_stage(build, FIRST)
    assert not is_done(build, SECOND)


def test_a_stage_writes_into_its_folder(build: Build) -> None:
    record = run_stage(build, Stage(1, "first", "stage_doubles:first", into="graphs"))
    assert set(record.files) == {"graphs/x.bin", "graphs/sub/y.bin"}
    assert (build.graphs / "x.bin").exists()
    assert not is_done(build, Stage(1, "first", "stage_doubles:first", into="elsewhere"))


def test_files_a_stage_no_longer_makes_are_removed(build: Build, stages_module: SimpleNamespace) -> None:
    run_stage(build, FIRST)
    stages_module.first = _writer("x.bin")
    run_stage(build, FIRST)
    assert (build.out / "x.bin").exists()
    assert not (build.out / "sub" / "y.bin").exists()


def test_files_that_another_stage_makes_now_are_left_alone(build: Build) -> None:
    """As a build for a GPU meets the record of one for a CPU, whose stages have other numbers."""
    run_stage(build, Stage(2, "tokenizer", "stage_doubles:second"))
    run_stage(build, Stage(1, "tokenizer", "stage_doubles:second"))
    run_stage(build, Stage(2, "manifest", "stage_doubles:first"))
    assert (build.out / "z.bin").exists()
    assert (build.out / "x.bin").exists()


def test_a_stage_that_fails_leaves_the_old_files_and_runs_again(build: Build, stages_module: SimpleNamespace) -> None:
    run_stage(build, FIRST)

    def fail(build: Build, folder: Path, needed: Needed) -> Facts:
        (folder / "x.bin").write_text("half")
        raise CheckpointError("no")

    stages_module.first = fail
    with pytest.raises(CheckpointError):
        run_stage(build, FIRST)
    assert (build.out / "x.bin").read_text() == "x.bin of 4096"
    assert is_done(build, FIRST)


def test_a_kill_while_files_are_moved_is_noticed(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    run_stage(build, FIRST)

    def killed(source: Path, target: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("build_engines.pipeline.os.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            run_stage(_again(build, context_tokens=5), FIRST)
    assert load_record(build, 1) is None
    run_stage(_again(build, context_tokens=5), FIRST)
    assert (build.out / "x.bin").read_text() == "x.bin of 5"
    assert not list(build.out.rglob("*.tmp"))


def test_a_damaged_record_means_to_do(build: Build) -> None:
    run_stage(build, FIRST)
    record = build.work / "stage1.json"
    record.write_text(json.dumps({"inputs": "x"}))
    assert not is_done(build, FIRST)
    record.write_text("{")
    assert not is_done(build, FIRST)


def test_one_build_at_a_time(build: Build) -> None:
    with build_lock(build), pytest.raises(EngineError, match="another build is running"), build_lock(build):
        pass
    with build_lock(build):
        pass


def test_select() -> None:
    assert select([FIRST, SECOND], []) == [FIRST, SECOND]
    assert select([FIRST, SECOND], [2]) == [SECOND]
    with pytest.raises(EngineError, match="9 is not a stage: choose from 1 to 2"):
        select([FIRST, SECOND], [9])


def test_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint there"):
        is_done(Build(tmp_path / "nothing", tmp_path / "out"), FIRST) or run_stage(
            Build(tmp_path / "nothing", tmp_path / "out"), FIRST
        )
