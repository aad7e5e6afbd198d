"""Loading TensorRT-LLM engines as far as no GPU is needed: records, files, what is bound."""

from __future__ import annotations

import json
import os
import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tensorrt_llm_double import Session
from vita_audio.checkpoint.configs import LanguageModelConfig
from vita_audio.contract.errors import EngineError
from vita_audio.engines.tensorrt_llm.engine import Engine
from vita_audio.engines.tensorrt_llm.engine_record import read_pair
from vita_audio.engines.tensorrt_llm.layout import layout_for

CONFIG = LanguageModelConfig(300, 32, 48, 2 + 10, 4, 2, 10, 1024)
LAYOUT = layout_for(CONFIG, 8, 1024, 256)
CPU = torch.device("cpu")


def fields(layers: int) -> dict[str, Any]:
    """The part of an engine's config.json that matters here."""
    return {
        "version": "1.2.1",
        "pretrained_config": {
            "mapping": {"world_size": 1},
            "num_hidden_layers": layers,
            "num_key_value_heads": 2,
            "head_size": 8,
            "dtype": "bfloat16",
            "quantization": {"quant_algo": None, "kv_cache_quant_algo": None},
        },
        "build_config": {
            "max_batch_size": 8,
            "max_seq_len": 1024,
            "max_num_tokens": 256,
            "plugin_config": {"tokens_per_block": 32},
        },
    }


Change = Callable[[dict[str, Any], dict[str, Any]], object]


def written(folder: Path, change: Change = lambda backbone, mctp: None) -> Path:
    """Records of both engines, changed."""
    parts = {"backbone": fields(2), "mctp": fields(10)}
    change(*parts.values())
    for part, content in parts.items():
        (folder / part).mkdir()
        (folder / part / "config.json").write_text(json.dumps(content))
    return folder


def network(**changes: Any) -> Change:
    """Change fields of the MCTP engine's network alone."""
    return lambda backbone, mctp: mctp["pretrained_config"].update(changes)


def both(quantization: dict[str, Any]) -> Change:
    return lambda *parts: [part["pretrained_config"].update(quantization=quantization) for part in parts]


def refusal(folder: Path) -> str:
    with pytest.raises(EngineError) as error:
        read_pair(folder, LAYOUT)
    text = str(error.value)
    assert "\n" not in text
    return text


def test_engines_that_fit_each_other(tmp_path: Path) -> None:
    backbone, mctp = read_pair(written(tmp_path), LAYOUT)
    assert mctp is not None
    assert (backbone.num_hidden_layers, mctp.num_hidden_layers) == (2, 10)
    assert backbone.hidden_dtype == backbone.kv_dtype == mctp.kv_dtype == torch.bfloat16


def test_keys_and_values_of_eight_bits(tmp_path: Path) -> None:
    folder = written(tmp_path, both({"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}))
    for record in read_pair(folder, LAYOUT):
        assert record is not None
        assert (record.hidden_dtype, record.kv_dtype.itemsize) == (torch.bfloat16, 1)


def test_a_prompt_table_has_a_row_for_each_token_of_a_step(tmp_path: Path) -> None:
    """The backbone's; the MCTP engine has none."""
    plus = replace(LAYOUT, embedded=True)
    folder = written(
        tmp_path, lambda backbone, mctp: backbone["build_config"].update(max_prompt_embedding_table_size=256)
    )
    assert read_pair(folder, plus)[0].max_prompt_embedding_table_size == plus.prompt_rows
    with pytest.raises(EngineError, match="max_prompt_embedding_table_size is 256, must be at least 512"):
        read_pair(folder, replace(plus, max_num_tokens=512))


def test_without_modules_there_is_one_engine(tmp_path: Path) -> None:
    config = LanguageModelConfig(300, 32, 48, 2, 4, 2, 0, 1024)
    assert read_pair(written(tmp_path), layout_for(config, 8, 1024, 256))[1] is None


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            network(quantization={"kv_cache_quant_algo": "FP8"}),
            "mctp: kv_cache_quant_algo is FP8, but None in {}/backbone, and the two share one pool of keys and values; "
            "build both in one go: --target gpu, with or without --fp8-kv-cache",
        ),
        (network(dtype="float16"), "mctp: dtype is float16, but bfloat16 in {}/backbone, and the two share hidden"),
        (network(num_key_value_heads=4), "mctp: built for something else: num_key_value_heads is 4, must be 2;"),
        (network(head_size=128), "head_size is 128, must be 8"),
        (network(num_hidden_layers=9), "num_hidden_layers is 9, must be 10"),
        (
            both({"kv_cache_quant_algo": "INT8"}),
            "backbone: built for something else: kv_cache_quant_algo is INT8, must",
        ),
        (lambda backbone, mctp: mctp["build_config"]["plugin_config"].update(tokens_per_block=64), "must be 32"),
        (lambda backbone, mctp: mctp["pretrained_config"].pop("head_size"), "config.json: 'head_size' is missing"),
        (lambda backbone, mctp: mctp["build_config"].pop("max_seq_len"), "config.json: 'max_seq_len' is missing"),
        (lambda backbone, mctp: mctp.update(build_config=None), "mctp/config.json: not readable"),
    ],
)
def test_engines_that_do_not_share_a_pool_are_refused(tmp_path: Path, change: Change, told: str) -> None:
    assert told.format(tmp_path) in refusal(written(tmp_path, change))


def test_all_faults_of_an_engine_are_named(tmp_path: Path) -> None:
    def change(backbone: dict[str, Any], mctp: dict[str, Any]) -> None:
        backbone["version"] = "1.2.0"
        backbone["build_config"].update(max_batch_size=7, max_seq_len=1023, max_num_tokens=255)
        backbone["pretrained_config"]["mapping"]["world_size"] = 2

    text = refusal(written(tmp_path, change))
    for fault in (
        "version is 1.2.0, must be 1.2.1",
        "world_size is 2, must be 1",
        "max_batch_size is 7, must be at least 8",
        "max_seq_len is 1023, must be at least 1024",
        "max_num_tokens is 255, must be at least 256",
        "rebuild with --target gpu",
    ):
        assert fault in text


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> type[Session]:
    monkeypatch.setattr(Session, "made", [])
    monkeypatch.setattr(Session, "inputs", ("ids", "sampled"))
    return Session


def test_an_engine_file_is_in_memory_once_and_not_for_long(session: type[Session], tmp_path: Path) -> None:
    """Mapped for as long as TensorRT reads it; nothing of it is copied to the heap."""
    content = os.urandom(16 << 20)
    (tmp_path / "rank0.engine").write_bytes(content)
    checksum = zlib.crc32(content)
    del content
    tracemalloc.start()
    try:
        Engine(session, tmp_path, frozenset(session.inputs), CPU)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    (loaded,) = session.made
    assert (loaded.bytes, loaded.checksum) == (16 << 20, checksum)
    assert peak < 1 << 20
    assert loaded.plan.closed


def test_files_that_are_no_engine(session: type[Session], tmp_path: Path) -> None:
    def told() -> str:
        with pytest.raises(EngineError) as error:
            Engine(session, tmp_path, frozenset(session.inputs), CPU)
        return str(error.value)

    assert "rank0.engine: engine not readable (" in told()
    (tmp_path / "rank0.engine").touch()
    assert "rank0.engine: engine not readable (" in told()
    (tmp_path / "rank0.engine").write_bytes(b"broken")
    assert "TensorRT cannot load it (its log says why); rebuild on this GPU and container" in told()
    (tmp_path / "rank0.engine").write_bytes(b"engine")
    session.inputs = ("ids", "other")
    with pytest.raises(EngineError, match=r"unknown \['other'\], missing \['sampled'\]; rebuild"):
        Engine(session, tmp_path, frozenset({"ids", "sampled"}), CPU)


def test_an_empty_input_has_an_address(session: type[Session], tmp_path: Path) -> None:
    """Greedy bursts have inputs without rows; TensorRT takes no null pointer."""
    (tmp_path / "rank0.engine").write_bytes(b"engine")
    engine = Engine(session, tmp_path, frozenset(session.inputs), CPU)
    inputs = {"ids": torch.arange(3), "sampled": torch.empty(0, dtype=torch.int32), "more": torch.ones(1)}
    engine.enqueue(inputs, {"tokens": torch.zeros(3, 10)}, 0)
    (loaded,) = session.made
    assert loaded.shapes == {"ids": (3,), "sampled": (0,)}
    assert set(loaded.addresses) == {"ids", "sampled", "tokens"}
    assert inputs["sampled"].data_ptr() == 0  # why it is needed
    assert all(loaded.addresses.values())
