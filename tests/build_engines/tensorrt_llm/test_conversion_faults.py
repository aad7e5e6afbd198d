"""Conversion to TensorRT-LLM: one clear line for each bad input, and what a kill leaves behind."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer import Typer
from typer.testing import CliRunner

from build_engines.tensorrt_llm import calibrate, convert, verify
from build_engines.tensorrt_llm import scales as scales_module
from build_engines.tensorrt_llm.config_file import check_part, read_plan
from build_engines.tensorrt_llm.convert import Options
from build_engines.tensorrt_llm.convert import convert as convert_checkpoint
from build_engines.tensorrt_llm.layout import Part
from build_engines.tensorrt_llm.scales import save_scales
from tensorrt_llm_checkpoints import SMALL, change_config, sequences, write_released, write_shards
from vita_audio.checkpoint.tensor_file import RankFile
from vita_audio.contract.errors import CheckpointError, EngineError, VitaError
from vita_audio.text.vocabulary import BASE


def fault(folder: Path, *words: str, **options: object) -> None:
    """Converting fails with one line that holds these words, and leaves nothing that looks converted."""
    with pytest.raises(VitaError) as caught:
        convert_checkpoint(folder, folder.parent / "out", Options(**options))  # type: ignore[arg-type]
    text = str(caught.value)
    assert "\n" not in text
    assert all(word in text for word in words), text
    assert {path.name for path in (folder.parent / "out").glob("*")} <= {".lock"}


@pytest.fixture
def released(tmp_path: Path) -> Path:
    write_released(tmp_path / "released")
    return tmp_path / "released"


def run(command: object, *arguments: object) -> tuple[int, str]:
    """Exit code and all output of a command line."""
    app = Typer()
    app.command()(command.main)  # type: ignore[attr-defined]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, " ".join(result.output.split())


# The checkpoint


def test_no_mctp_modules(tmp_path: Path) -> None:
    folder = tmp_path / "released"
    write_released(folder, replace(SMALL, num_nextn_predict_layers=0))
    fault(folder, "num_nextn_predict_layers is 0", "--part backbone")
    convert_checkpoint(folder, tmp_path / "out", Options(parts=(Part.BACKBONE,)))
    assert check_part(tmp_path / "out" / "backbone").layers == 5


def test_another_k_and_another_vocabulary(released: Path) -> None:
    change_config(released, num_nextn_predict_layers=2)
    fault(released, "num_nextn_predict_layers is 2", "3 MCTP modules", "config.json that came with")
    change_config(released, num_nextn_predict_layers=3, vocab_size=60)
    fault(released, "vocab_size is 60", "61 rows")
    change_config(released, vocab_size=61, hidden_size=64)
    fault(released, "wrong shapes", "lm_head.weight is [61, 32], must be [61, 64]")


def test_tokenizer_larger_than_the_model(released: Path) -> None:
    texts = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_audio|>", "<|end_of_audio|>", "<|audio|>")
    added = [*texts, *(f"<|audio_{code}|>" for code in range(60))]
    content = {
        "model": {"vocab": {"a": 0}},
        "added_tokens": [{"content": text, "id": 1 + number} for number, text in enumerate(added)],
    }
    (released / "tokenizer.json").write_text(json.dumps(content))
    fault(released, "tokenizer.json", "has 67 tokens", "only 61 rows")
    assert BASE.tokens < 168_072  # the released one fits its model


def test_missing_and_truncated_shards(released: Path) -> None:
    shard = released / "model-00002-of-00002.safetensors"
    content = shard.read_bytes()
    shard.unlink()
    fault(released, shard.name, "missing", "download")
    shard.write_bytes(content[: len(content) // 2])
    fault(released, shard.name, "truncated", "download")
    (released / "model.safetensors.index.json").unlink()
    fault(released, "neither model.safetensors nor model.safetensors.index.json")


def test_values_beyond_float16(released: Path) -> None:
    tensors = load_file(released / "model-00001-of-00002.safetensors")
    tensors |= load_file(released / "model-00002-of-00002.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][0, 0] = 1e6
    write_shards(released, tensors)
    fault(released, "model.layers.1.mlp.down_proj.weight", "65504", "--dtype bfloat16", dtype="float16")


# Options


def test_ranks_that_do_not_divide(released: Path) -> None:
    fault(released, "--tp: 3 does not divide num_attention_heads 4, hidden_size 32", "choose 1 or 2", tp=3)
    fault(released, "--tp: 0 is not valid", tp=0)
    fault(released, "--tp: 8", "num_attention_heads 4", "choose 1 or 2 or 4", tp=8)


def test_other_options(released: Path) -> None:
    fault(released, "--dtype: 'float64'", "bfloat16, float16", dtype="float64")
    fault(released, "--mctp-head-from: 61", "0 to 60", head_first_id=61)
    fault(released, "--fp8-kv-cache", "backbone is none", fp8_kv_cache=True)


def test_disk_too_small(released: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 9 * 10**8, 10**7))
    fault(released, "--out: 0.0 GB are free", "0.1 GB are needed", "backbone", "mctp", "another disk")


def test_commands(released: Path, tmp_path: Path) -> None:
    """The three commands, as a user chains them; errors are one line and exit code 1."""
    out, scales, tokens = tmp_path / "out", tmp_path / "scales.safetensors", tmp_path / "tokens.jsonl"
    code, text = run(convert, "--checkpoint", released, "--out", out, "--backbone", "int3")
    assert (code, text) == (
        1,
        "error: --backbone: 'int3' is not a known quantisation: choose one of none, fp8, w4a16_awq",
    )
    code, text = run(convert, "--checkpoint", released, "--out", out, "--part", "head")
    assert (code, text) == (1, "error: --part: 'head' is not valid: choose backbone or mctp")
    code, text = run(convert, "--checkpoint", released, "--out", out, "--backbone", "fp8", "--mctp", "fp8")
    assert code == 1
    assert "--scales: 76 scales are needed" in text
    code, text = run(convert, "--checkpoint", released, "--out", out, "--backbone", "w4a16_awq", "--part", "backbone")
    assert code == 1
    assert "transformer.layers.0.attention.qkv: 64 x 32 must be a multiple of 128 both ways" in text

    measure = ("--checkpoint", released, "--tokens", tokens, "--out", scales)
    tokens.write_text("[1, 2\n")
    assert run(calibrate, *measure, "--backbone", "fp8") == (
        1,
        f"error: {tokens}: line 1 is not a JSON list of token ids",
    )
    tokens.write_bytes(b"[1, 2]\n\xff\xff\n")
    assert "line 2 is not a JSON list of token ids" in run(calibrate, *measure, "--backbone", "fp8")[1]
    tokens.write_text("".join(f"{json.dumps(ids)}\n" for ids in sequences(SMALL)))
    assert "nothing to calibrate" in run(calibrate, *measure)[1]
    code, text = run(calibrate, *measure, "--backbone", "fp8", "--mctp", "fp8")
    assert code == 0, text
    options = ("--backbone", "fp8", "--mctp", "fp8", "--fp8-kv-cache", "--scales", scales, "--tp", 2)
    code, text = run(convert, "--checkpoint", released, "--out", out, *options)
    assert code == 0, text
    assert f"{out / 'mctp'}: 0.00 GB, 2 rank(s)" in text
    code, text = run(convert, "--checkpoint", released, "--out", out, *options)
    assert (code, text) == (0, f"{out / 'backbone'}: unchanged {out / 'mctp'}: unchanged")
    code, text = run(verify, "--checkpoint", released, "--converted", out)
    assert code == 0
    assert text.count("largest relative error of a quantised weight 0.0") == 2
    code, text = run(verify, "--checkpoint", released, "--converted", tmp_path)
    assert (code, "convert first" in text) == (1, True)


def test_calibrating_is_refused_before_the_run(released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes hours for the released model: no bad option may cost them."""
    monkeypatch.setattr(calibrate, "calibrate", lambda *_: pytest.fail("it ran"))
    (tmp_path / "folder.json").mkdir()
    tokens, file = tmp_path / "tokens.jsonl", tmp_path / "scales.json"
    tokens.write_text("".join(f"{json.dumps(ids)}\n" for ids in sequences(SMALL)))

    def told(out: Path, *options: str, checkpoint: Path = released) -> str:
        code, text = run(calibrate, "--checkpoint", checkpoint, "--tokens", tokens, "--out", out, *options)
        assert code == 1
        assert text.count("error: ") == 1, text
        return text

    none = tmp_path / "none"  # files and formats are looked at before the checkpoint
    assert "both are none: there is nothing to calibrate" in told(file, checkpoint=none)
    fp8 = ("--backbone", "fp8")
    assert "scales.bin: a scales file ends with" in told(tmp_path / "scales.bin", *fp8, checkpoint=none)
    assert "there is no folder" in told(tmp_path / "missing" / "scales.json", *fp8, checkpoint=none)
    assert "folder.json: is a folder" in told(tmp_path / "folder.json", *fp8, checkpoint=none)
    wide = "64 x 32 must be a multiple of 128 both ways for w4a16_awq"
    assert wide in told(file, "--backbone", "w4a16_awq")
    assert "must be a multiple of 128" in told(file, "--backbone", "fp8", "--mctp", "w4a16_awq")
    write_released(tmp_path / "vanilla", replace(SMALL, num_nextn_predict_layers=0))
    assert "--mctp: fp8 is for MCTP modules" in told(file, "--mctp", "fp8", checkpoint=tmp_path / "vanilla")


@pytest.mark.parametrize("name", ["scales.json", "scales.safetensors"])
def test_scales_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(scales_module, "check_scales_file", lambda path: None)  # the folder went after it
    with pytest.raises(EngineError, match=f"{name}: cannot be written") as caught:
        save_scales(tmp_path / "gone" / name, {"scale": torch.ones(1)})
    assert "\n" not in str(caught.value)


# Kills, leftovers and damage


def test_killed_half_way(released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finished part is kept, a half one is made again, and nothing of it was ever in its place."""
    out, write, count = tmp_path / "out", RankFile.write, 0

    def dies(self: RankFile, name: str, tensor: torch.Tensor) -> int:
        nonlocal count
        count += 1
        if count > 30:
            os.kill(os.getpid(), signal.SIGKILL)
        return write(self, name, tensor)

    monkeypatch.setattr(RankFile, "write", dies)
    child = multiprocessing.get_context("fork").Process(target=convert_checkpoint, args=(released, out, Options()))
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    assert {path.name for path in out.iterdir()} == {"backbone", ".mctp.tmp", ".lock"}  # 19 tensors, then 11 of mctp
    monkeypatch.undo()
    before = (out / "backbone" / "rank0.safetensors").stat().st_mtime_ns
    done = convert_checkpoint(released, out, Options())
    assert [(part.plan.part, part.fresh) for part in done] == [(Part.BACKBONE, False), (Part.MCTP, True)]
    assert (out / "backbone" / "rank0.safetensors").stat().st_mtime_ns == before
    assert {path.name for path in out.iterdir()} == {"backbone", "mctp", ".lock"}
    check_part(out / "mctp")


def test_what_makes_a_part_again(released: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def fresh(**options: object) -> list[bool]:
        return [part.fresh for part in convert_checkpoint(released, out, Options(**options))]  # type: ignore[arg-type]

    assert fresh() == [True, True]
    assert fresh() == [False, False]
    assert fresh(tp=2) == [True, True]  # other options
    assert not (out / "backbone" / "rank2.safetensors").exists()
    assert fresh(tp=2, head_first_id=20) == [False, True]
    path = out / "mctp" / "rank0.safetensors"
    path.write_bytes(path.read_bytes()[:-1])  # damage
    assert fresh(tp=2, head_first_id=20) == [False, True]
    write_released(released, seed=1)  # another checkpoint
    assert fresh(tp=2, head_first_id=20) == [True, True]


def test_foreign_folder_is_not_replaced(released: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "mctp").mkdir(parents=True)
    (tmp_path / "out" / "mctp" / "mine.txt").write_text("keep")
    with pytest.raises(EngineError, match="not made by this converter"):
        convert_checkpoint(released, tmp_path / "out", Options())
    assert (tmp_path / "out" / "mctp" / "mine.txt").exists()
    assert not (tmp_path / "out" / "backbone").exists()


def test_checks_of_a_converted_part(released: Path, tmp_path: Path) -> None:
    convert_checkpoint(released, tmp_path / "out", Options(tp=2))
    folder = tmp_path / "out" / "mctp"
    path = folder / "rank1.safetensors"
    tensors = load_file(path)
    norm = tensors.pop("ln_f.weight")
    save_file(tensors | {"lm_head.weight": tensors["lm_head.weight"].float(), "stranger": norm}, path)
    with pytest.raises(EngineError) as caught:
        check_part(folder)
    for words in ("missing tensor: ln_f.weight", "unexpected tensor: stranger", "lm_head.weight is F32, must be BF16"):
        assert words in str(caught.value)
    path.unlink()
    with pytest.raises(EngineError, match=r"rank1\.safetensors: missing"):
        check_part(folder)
    for field, value, words in (
        ("architecture", "GPT2LMHeadModel", "architecture must be one of Qwen2ForCausalLM"),
        ("mapping", {"tp_size": 2, "pp_size": 2}, r"mapping\.pp_size is 2, only 1"),
        ("quantization", {"quant_algo": "NVFP4"}, r"quantization\.quant_algo is 'NVFP4'"),
        ("hidden_size", None, "hidden_size is None"),
    ):
        before = (folder / "config.json").read_text()
        change_config(folder, **{field: value})
        with pytest.raises(CheckpointError, match=words):
            read_plan(folder)
        (folder / "config.json").write_text(before)


def test_verify_finds_another_value(released: Path, tmp_path: Path) -> None:
    convert_checkpoint(released, tmp_path / "out", Options(tp=4))
    path = tmp_path / "out" / "backbone" / "rank1.safetensors"
    tensors, qkv = load_file(path), "transformer.layers.1.attention.qkv.weight"
    changed = tensors[qkv].clone()
    changed[8:16] += 1  # rank 0 holds the same head of k
    save_file(tensors | {qkv: changed}, path)
    code, text = run(verify, "--checkpoint", released, "--converted", tmp_path / "out")
    assert (code, "different copies of one tensor" in text) == (1, True)
    tensors["transformer.layers.1.mlp.fc.weight"], tensors["transformer.layers.1.mlp.gate.weight"] = (
        tensors["transformer.layers.1.mlp.gate.weight"],
        tensors["transformer.layers.1.mlp.fc.weight"],
    )
    save_file(tensors, path)
    code, text = run(verify, "--checkpoint", released, "--converted", tmp_path / "out")
    assert (code, "model.layers.1" in text, "is not that of" in text) == (1, True, True)


def test_rank_file_holds_exactly_its_outline(tmp_path: Path) -> None:
    outline = {"a": ((2, 3), torch.bfloat16), "b": ((5,), torch.float8_e4m3fn), "c": ((1,), torch.float32)}
    values = {name: torch.rand(shape).to(dtype) for name, (shape, dtype) in outline.items()}
    with RankFile(tmp_path / "x", outline) as file:
        assert [file.write(name, value) for name, value in values.items()] == [12, 5, 4]
        with pytest.raises(ValueError, match="d: "):
            file.write("d", values["a"])
    found = load_file(tmp_path / "x")
    assert all(found[name].dtype == value.dtype for name, value in values.items())
    assert all(torch.equal(found[name].float(), value.float()) for name, value in values.items())
    with pytest.raises(ValueError, match="b, c never written"), RankFile(tmp_path / "y", outline) as file:
        file.write("a", values["a"])
    for wrong in (values["b"], values["a"].float()):
        with pytest.raises(ValueError, match="is not the next tensor"), RankFile(tmp_path / "z", outline) as file:
            file.write("a", wrong)
