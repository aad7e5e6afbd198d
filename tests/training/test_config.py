"""The configuration: ready ones load, faults are all named; parts run in order and only when they can."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from training.__main__ import app
from training.config import CONFIGS, TrainingConfig, load_config
from training.errors import TrainingError
from training.init_from import InitFrom
from training.kept import keep_config, load_kept
from training.pipeline import Part, parts_of, run_parts


def write(path: Path, change: dict[str, object]) -> str:
    content = yaml.safe_load((CONFIGS / "tiny.yaml").read_text())
    for place, value in change.items():
        *parents, name = place.split(".")
        target = content
        for parent in parents:
            target = target[parent]
        if value is None:
            del target[name]
        else:
            target[name] = value
    path.write_text(yaml.safe_dump(content))
    return str(path)


@pytest.mark.parametrize("name", ["small", "tiny"])
def test_ready_configurations_load(name: str) -> None:
    config = load_config(name)
    assert config.language_model.trained_mode.name == "boost"
    assert config.language_model.stage1.run.learning_rate > 1e-4  # YAML reads 1e-3 as text
    assert config.speech_tokenizer.model.quantize_vocab_size == config.flow.model.vocab_size


def test_every_fault_is_named(tmp_path: Path) -> None:
    path = write(
        tmp_path / "bad.yaml",
        {
            "language_model.stage1.run.step": 3,
            "language_model.merges": "many",
            "language_model.model.hidden_size": None,
            "vocoder.run.learning_rate": True,
            "data.gain_db": [1, 2, 3],
            "speach": {},
        },
    )
    with pytest.raises(TrainingError) as caught:
        load_config(path)
    for fault in (
        "language_model.stage1.run.step: unknown key; known are steps, learning_rate",
        "language_model.merges: 'many' must be a whole number",
        "language_model.model.hidden_size: missing",
        "vocoder.run.learning_rate: True must be a number",
        "data.gain_db: [1, 2, 3] must have 2 values",
        "speach: unknown key",
    ):
        assert fault in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"flow.model.vocab_size": 128}, "must be the tokenizer's 256 codes"),
        ({"language_model.mode": "vanilla"}, "does not interleave"),
        ({"language_model.mode": "fast"}, "neither the name of a mode"),
        ({"language_model.dtype": "int8"}, "must be float16, bfloat16 or float32"),
        ({"language_model.stage1.mixture": {"singing": 1.0}}, "singing unknown"),
        ({"language_model.model.mctp_modules": 4}, "K = 4"),
        ({"flow.output_voice": "rms"}, "must be the same everywhere"),
    ],
)
def test_parts_that_do_not_fit(tmp_path: Path, change: dict[str, object], words: str) -> None:
    with pytest.raises(TrainingError, match=words):
        load_config(write(tmp_path / "bad.yaml", change))


def test_single_values_can_be_set() -> None:
    config = load_config("tiny", ["language_model.stage1.run.steps=7", "data.gain_db=[-3, 0]"])
    assert config.language_model.stage1.run.steps == 7
    assert config.data.gain_db == (-3.0, 0.0)
    for change, words in (("data.tts", "no value"), ("nothing.here=1", "key of the configuration")):
        with pytest.raises(TrainingError, match=words):
            load_config("tiny", [change])
    with pytest.raises(TrainingError, match=r"data.tss: unknown key"):
        load_config("tiny", ["data.tss=1"])


def test_no_such_configuration() -> None:
    with pytest.raises(TrainingError, match=r"neither one of small, tiny nor a readable file"):
        load_config("huge")


def test_parts_run_in_order_and_done_ones_are_skipped(tmp_path: Path) -> None:
    ran: list[str] = []

    def part(name: str, needs: tuple[str, ...]) -> Part:
        def make() -> None:
            ran.append(name)
            (tmp_path / name).touch()

        return Part(name, (tmp_path / name,), needs, make)

    parts = [part("a", ()), part("b", ("a",)), part("c", ("b",))]
    with pytest.raises(TrainingError, match="c needs b first"):
        run_parts(parts, "c", lambda _: None)
    with pytest.raises(TrainingError, match="'d' is not a part; parts are a, b, c"):
        run_parts(parts, "d", lambda _: None)
    run_parts(parts, "a", lambda _: None)
    run_parts(parts, None, lambda _: None)
    assert ran == ["a", "b", "c"]
    run_parts([replace(parts[0], again=True)], "a", lambda _: None)
    assert ran[3:] == ["a"]


def test_what_was_made_from_something_else_is_not_done(tmp_path: Path) -> None:
    """Made again where that is quick, refused where it was trained."""
    ran: list[str] = []

    def part(name: str, *sources: str, needs: tuple[str, ...] = (), trained: bool = False) -> Part:
        folder = tmp_path / name

        def make() -> None:
            ran.append(name)
            folder.mkdir(exist_ok=True)
            (folder / "made").write_text(f"{name} {len(ran)}")
            if trained:
                (folder / "snapshots").mkdir(exist_ok=True)

        paths = tuple(tmp_path / source for source in sources)
        return Part(name, (folder / "made",), needs, make, folder=folder, sources=paths)

    parts = [part("codec"), part("tokens", "codec/made", needs=("codec",)), part("flow", "codec", trained=True)]
    run_parts(parts, None, lambda _: None)
    run_parts(parts, None, lambda _: None)
    assert ran == ["codec", "tokens", "flow"]
    shutil.rmtree(tmp_path / "codec")
    assert [part.done for part in parts] == [False, True, True]  # until there is another one
    with pytest.raises(TrainingError, match=f"flow: was trained on another codec/made .*; delete {tmp_path}/flow"):
        run_parts(parts, None, lambda _: None)
    assert ran[3:] == ["codec", "tokens"]
    shutil.rmtree(tmp_path / "flow")
    run_parts(parts, None, lambda _: None)
    assert ran[5:] == ["flow"]
    (tmp_path / "flow" / "made").unlink()  # stopped half-way
    (tmp_path / "codec" / "made").write_text("another")
    with pytest.raises(TrainingError, match="flow: was trained on another"):
        run_parts(parts, None, lambda _: None)


def test_what_each_part_is_made_from() -> None:
    parts = parts_of(load_config("tiny"), InitFrom.read(Path("out")), Path("out"), Path("checkpoint"), "command")
    sources = {part.name: [path.relative_to("out").as_posix() for path in part.sources] for part in parts}
    assert sources["vocoder"] == ["data/speech.jsonl"]
    assert sources["flow"] == ["data/speech.jsonl", "speech_tokenizer/speech_tokenizer"]
    assert sources["stage1"] == ["tokens/train.npz"]
    assert sources["stage4"] == ["tokens/train.npz", "stage3/language_model"]


def settled(tmp_path: Path, *changes: str, name: str = "tiny") -> TrainingConfig:
    """As a command does."""
    config, all_changes = load_kept(name, changes, tmp_path)
    keep_config(name, all_changes, config, tmp_path)
    return config


def test_a_resume_has_the_changes_of_the_first_run(tmp_path: Path) -> None:
    first = settled(tmp_path, "flow.run.steps=7", "data.gain_db=[-3, 0]")
    assert settled(tmp_path) == first
    assert settled(tmp_path, "flow.run.steps=7") == first
    freely = settled(tmp_path, "flow.run.log_every=9", "data.processes=3", "language_model.device=cpu")
    assert freely == replace(
        first,
        flow=replace(first.flow, run=replace(first.flow.run, log_every=9)),
        data=replace(first.data, processes=3),
        language_model=replace(first.language_model, device="cpu"),
    )
    assert settled(tmp_path) == first


def test_a_resume_with_other_settings_names_them(tmp_path: Path) -> None:
    yaml = tmp_path / "mine.yaml"
    yaml.write_text((CONFIGS / "tiny.yaml").read_text())
    out = tmp_path / "out"
    settled(out, "flow.run.steps=7", name=str(yaml))
    for change, words in (
        ("flow.run.steps=8", "flow.run.steps: 7 there, 8 asked"),
        ("language_model.stage4.run.clip=2", "language_model.stage4.run.clip: 1.0 there, 2.0 asked"),
        ("language_model.stage4.mixture={chat: 2}", "language_model.stage4.mixture.asr: 0.5 there, None asked"),
        ("language_model.blend=0.5", "language_model.blend: 1.0 there, 0.5 asked"),
    ):
        with pytest.raises(TrainingError, match=f"other settings.*\n  {words}"):
            settled(out, change, name=str(yaml))
    yaml.write_text(yaml.read_text().replace("segment_frames: 16", "segment_frames: 24"))
    with pytest.raises(TrainingError, match=r"\n  vocoder.segment_frames: 16 there, 24 asked$"):
        settled(out, name=str(yaml))
    with pytest.raises(TrainingError, match=rf"(?s)--config {yaml}\).*\n  and \d+ more$"):
        settled(out, name="small")


def test_parts_of_a_training_name_what_they_need() -> None:
    parts = parts_of(load_config("tiny"), InitFrom.read(Path("out")), Path("out"), Path("checkpoint"), "command")
    names = [part.name for part in parts]
    assert names[0] == "data"
    assert names[-5:] == ["stage1", "stage2", "stage3", "stage4", "checkpoint"]
    for number, part in enumerate(parts):
        assert set(part.needs) <= set(names[:number])


def test_command_line(tmp_path: Path) -> None:
    runner = CliRunner()
    listed = runner.invoke(app, ["--config", "tiny", "--list", "--out", str(tmp_path)])
    assert listed.exit_code == 0
    assert "stage4: to do" in listed.output
    wrong = runner.invoke(app, ["--config", "huge"])
    assert wrong.exit_code == 1
    (tmp_path / "something").touch()
    again = runner.invoke(app, ["--config", "tiny", "--out", str(tmp_path)])
    assert again.exit_code == 1
    assert "--resume" in again.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--train", "flow"], "need each other"),
        (["--init-from", "x", "--train", "ears"], "--train: 'ears' unknown"),
        (["--init-from", "x", "--train", "speech_tokenizer,flow"], "language_model must follow"),
        (["--init-from", "x", "--train", "flow"], "--init-from: x does not fit the configuration"),
    ],
)
def test_checkpoints_that_cannot_be_started_from(tmp_path: Path, options: list[str], words: str) -> None:
    refused = CliRunner().invoke(app, ["--config", "tiny", "--out", str(tmp_path / "out"), *options])
    assert refused.exit_code == 1
    assert words in refused.stderr
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    from training.bundle import write_bundle

    (tmp_path / "thesis.txt").touch()
    with pytest.raises(TrainingError, match="not a trained checkpoint"):
        write_bundle(load_config("tiny"), InitFrom.read(tmp_path / "out"), tmp_path / "out", tmp_path, "")
    assert (tmp_path / "thesis.txt").exists()
