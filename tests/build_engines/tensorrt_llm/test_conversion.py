"""Conversion to TensorRT-LLM checkpoints: names, shares of the ranks, config, and the same model back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from build_engines.tensorrt_llm.config_file import check_part
from build_engines.tensorrt_llm.convert import Options, convert
from build_engines.tensorrt_llm.layout import Part
from build_engines.tensorrt_llm.verify import restore, verify_part
from tensorrt_llm_checkpoints import SMALL, sequences, write_released
from vita_audio.checkpoint.configs import LanguageModelConfig
from vita_audio.checkpoint.language_model import open_language_model
from vita_audio.models.language_model import LanguageModel, rotary_table, rotate


def converted(
    folder: Path, tp: int = 1, config: LanguageModelConfig = SMALL, dtype: str = "bfloat16"
) -> dict[str, Tensor]:
    tensors = write_released(folder / "released", config)
    convert(folder / "released", folder / "out", Options(tp=tp, dtype=dtype))
    return tensors


def rank(folder: Path, part: str, number: int = 0) -> dict[str, Tensor]:
    return load_file(folder / "out" / part / f"rank{number}.safetensors")


def test_names_and_values_on_one_gpu(tmp_path: Path) -> None:
    """Against the names in docs/tensorrt_llm.md 5.1, written out."""
    released = converted(tmp_path)
    backbone, mctp = rank(tmp_path, "backbone"), rank(tmp_path, "mctp")
    layer = {
        "input_layernorm.weight", "attention.qkv.weight", "attention.qkv.bias", "attention.dense.weight",
        "post_layernorm.weight", "mlp.fc.weight", "mlp.gate.weight", "mlp.proj.weight",
    }  # fmt: skip
    assert set(backbone) == {
        "transformer.vocab_embedding.weight", "transformer.ln_f.weight", "lm_head.weight",
        *(f"transformer.layers.{i}.{name}" for i in range(2) for name in layer),
    }  # fmt: skip
    assert set(mctp) == {
        "vocab_embedding.weight", "ln_f.weight", "lm_head.weight",
        *(f"mctp.{k}.{name}.weight" for k in range(3) for name in ("proj", "embed_norm", "hidden_norm")),
        *(f"mctp.{k}.layer.{name}" for k in range(3) for name in layer),
    }  # fmt: skip

    def same(got: Tensor, *keys: str) -> None:
        assert torch.equal(got, torch.cat([released[key] for key in keys])), keys

    attention, mlp = "model.layers.1.self_attn", "model.layers.1.mlp"
    same(backbone["transformer.layers.1.attention.qkv.weight"], *(f"{attention}.{part}_proj.weight" for part in "qkv"))
    same(backbone["transformer.layers.1.attention.qkv.bias"], *(f"{attention}.{part}_proj.bias" for part in "qkv"))
    same(backbone["transformer.layers.1.mlp.fc.weight"], f"{mlp}.gate_proj.weight")  # the activated branch
    same(backbone["transformer.layers.1.mlp.gate.weight"], f"{mlp}.up_proj.weight")
    same(backbone["transformer.layers.1.mlp.proj.weight"], f"{mlp}.down_proj.weight")
    same(mctp["mctp.2.layer.attention.dense.weight"], "model.layers.4.self_attn.o_proj.weight")  # 2 backbone layers
    same(mctp["mctp.2.proj.weight"], "mtp_projs.2.weight")
    same(mctp["mctp.2.embed_norm.weight"], "mtp_embed_norms.2.weight")
    same(mctp["mctp.2.hidden_norm.weight"], "mtp_hidden_norms.2.weight")
    for tensors, embedding, norm in (
        (backbone, "transformer.vocab_embedding", "transformer.ln_f"),
        (mctp, "vocab_embedding", "ln_f"),
    ):
        same(tensors[f"{embedding}.weight"], "model.embed_tokens.weight")
        same(tensors[f"{norm}.weight"], "model.norm.weight")
        same(tensors["lm_head.weight"], "lm_head.weight")


def test_shares_of_four_ranks(tmp_path: Path) -> None:
    """Each of q, k, v is split first; 2 KV heads on 4 ranks are held twice; 61 rows become 64."""
    released = converted(tmp_path, tp=4)
    layer, heads = "model.layers.0.self_attn", 8  # rows of a head
    for number in range(4):
        backbone = rank(tmp_path, "backbone", number)
        q, k, v = (released[f"{layer}.{part}_proj.weight"] for part in "qkv")
        own, shared = slice(number * heads, (number + 1) * heads), slice(number // 2 * heads, (number // 2 + 1) * heads)
        wanted = torch.cat([q[own], k[shared], v[shared]])
        assert torch.equal(backbone["transformer.layers.0.attention.qkv.weight"], wanted)
        dense = released[f"{layer}.o_proj.weight"][:, own]
        assert torch.equal(backbone["transformer.layers.0.attention.dense.weight"], dense)
        head = backbone["lm_head.weight"]
        assert head.shape == (16, 32)
        rows = released["lm_head.weight"][number * 16 : (number + 1) * 16]
        assert torch.equal(head[: len(rows)], rows)
        assert not head[len(rows) :].any()
        assert backbone["transformer.vocab_embedding.weight"].shape == (61, 32)
        proj = rank(tmp_path, "mctp", number)["mctp.1.proj.weight"]
        assert torch.equal(proj, released["mtp_projs.1.weight"][number * 8 : (number + 1) * 8])


@pytest.mark.parametrize("tp", [1, 2, 4])
@pytest.mark.parametrize("kv_heads", [2, 4])
def test_exact_round_trip(tmp_path: Path, tp: int, kv_heads: int) -> None:
    config = replace(SMALL, num_key_value_heads=kv_heads)
    released = converted(tmp_path, tp, config)
    back: dict[str, Tensor] = {}
    for part in ("backbone", "mctp"):
        back |= {restored.key: restored.tensor for restored in restore(tmp_path / "out" / part)}
        assert verify_part(open_language_model(tmp_path / "released"), tmp_path / "out" / part) == 0.0
    assert back.keys() == released.keys()
    for key, tensor in released.items():
        assert back[key].dtype == torch.bfloat16
        assert torch.equal(back[key], tensor), key


def test_float16_and_tied_embeddings(tmp_path: Path) -> None:
    config = replace(SMALL, tie_word_embeddings=True)
    released = converted(tmp_path, 2, config, "float16")
    back = {restored.key: restored.tensor for restored in restore(tmp_path / "out" / "backbone")}
    assert back.keys() == {key for key in released if ".layers." not in key or int(key.split(".")[2]) < 2} - {
        key for key in released if key.startswith("mtp_")
    }
    assert all(torch.equal(tensor, released[key].half()) for key, tensor in back.items())
    assert torch.equal(rank(tmp_path, "backbone")["lm_head.weight"], released["model.embed_tokens.weight"][:31].half())


def test_config(tmp_path: Path) -> None:
    converted(tmp_path, tp=2)
    fields = json.loads((tmp_path / "out" / "mctp" / "config.json").read_text())
    wanted = {
        "architecture": "VitaMctpForCausalLM", "dtype": "bfloat16", "logits_dtype": "float32", "vocab_size": 61,
        "max_position_embeddings": 64, "seq_length": 64, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 3, "backbone_layers": 2, "head_first_id": 0,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_size": 8,
        "hidden_act": "silu", "norm_epsilon": 1e-6, "position_embedding_type": "rope_gpt_neox", "rotary_base": 1e6,
        "rotary_scaling": None, "qwen_type": "qwen2", "attn_bias": True, "mlp_bias": False,
        "tie_word_embeddings": False, "use_parallel_embedding": False, "embedding_sharding_dim": 0,
        "mapping": {"world_size": 2, "tp_size": 2, "pp_size": 1},
        "quantization": {"quant_algo": None, "kv_cache_quant_algo": None, "exclude_modules": ["lm_head"]},
    }  # fmt: skip
    assert fields == wanted
    backbone = json.loads((tmp_path / "out" / "backbone" / "config.json").read_text())
    assert backbone == wanted | {"architecture": "Qwen2ForCausalLM", "num_hidden_layers": 2}
    plan = check_part(tmp_path / "out" / "mctp")
    assert (plan.part, plan.tp, plan.layers, plan.config.mctp_modules) == (Part.MCTP, 2, 3, 3)


def test_cut_head(tmp_path: Path) -> None:
    """The MCTP head keeps its last 61 - 20 rows, padded to 42; the backbone's is whole."""
    released = write_released(tmp_path / "released")
    convert(tmp_path / "released", tmp_path / "out", Options(tp=2, head_first_id=20))
    head = torch.cat([rank(tmp_path, "mctp", number)["lm_head.weight"] for number in range(2)])
    assert torch.equal(head, torch.cat([released["lm_head.weight"][20:], torch.zeros(1, 32).bfloat16()]))
    assert rank(tmp_path, "backbone")["lm_head.weight"].shape == (31, 32)
    for part in ("backbone", "mctp"):
        assert verify_part(open_language_model(tmp_path / "released"), tmp_path / "out" / part) == 0.0


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q1, k1, v1 = (x.transpose(0, 1)[None] for x in (q, k, v))
    return F.scaled_dot_product_attention(q1, k1, v1, is_causal=True, enable_gqa=True)[0].transpose(0, 1)


def norm(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * weight


def trt_layer(x: Tensor, ranks: list[dict[str, Tensor]], name: str, config: LanguageModelConfig) -> Tensor:
    """A decoder layer as TensorRT-LLM computes it: every rank its heads and its part of the MLP, outputs summed."""
    cos, sin = rotary_table(torch.arange(len(x)), config.head_dim, config.rope_theta)
    inner, total = norm(x, ranks[0][f"{name}.input_layernorm.weight"]), torch.zeros_like(x)
    q_rows = config.hidden_size // len(ranks)
    for w in ranks:
        qkv = F.linear(inner, w[f"{name}.attention.qkv.weight"], w[f"{name}.attention.qkv.bias"])
        kv_rows = (qkv.shape[1] - q_rows) // 2
        q, k, v = (part.unflatten(-1, (-1, config.head_dim)) for part in qkv.split([q_rows, kv_rows, kv_rows], dim=1))
        out = causal(rotate(q, cos, sin), rotate(k, cos, sin), v).flatten(-2)
        total += F.linear(out, w[f"{name}.attention.dense.weight"])
    x = x + total
    inner, total = norm(x, ranks[0][f"{name}.post_layernorm.weight"]), torch.zeros_like(x)
    for w in ranks:
        activated = F.silu(F.linear(inner, w[f"{name}.mlp.fc.weight"]))
        total += F.linear(activated * F.linear(inner, w[f"{name}.mlp.gate.weight"]), w[f"{name}.mlp.proj.weight"])
    return x + total


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_the_ranks_compute_the_reference(tmp_path: Path, tp: int) -> None:
    """Backbone and two MCTP modules, computed from the ranks' files alone, give the reference's hidden states."""
    released = converted(tmp_path, tp)
    model = LanguageModel(SMALL)
    model.load_state_dict({key: value.float() for key, value in released.items()})
    ids = torch.tensor(sequences(SMALL, count=1)[0])
    backbone, mctp = (
        [{name: t.float() for name, t in rank(tmp_path, part, r).items()} for r in range(tp)]
        for part in ("backbone", "mctp")
    )
    with torch.inference_mode():
        positions = torch.arange(len(ids))
        wanted = model.backbone(ids, positions, lambda layer: causal)
        x = backbone[0]["transformer.vocab_embedding.weight"][ids]
        for index in range(2):
            x = trt_layer(x, backbone, f"transformer.layers.{index}", SMALL)
        hidden = norm(x, backbone[0]["transformer.ln_f.weight"])
        torch.testing.assert_close(hidden, wanted, rtol=1e-4, atol=1e-4)
        logits = torch.cat([F.linear(hidden, w["lm_head.weight"]) for w in backbone], dim=1)[:, :61]
        torch.testing.assert_close(logits, model.logits(wanted), rtol=1e-4, atol=1e-4)
        for k in range(2):
            rows = len(ids) - k - 1
            wanted = model.mctp(k, ids[k + 1 :], wanted[:rows], positions[:rows], causal)
            e = norm(mctp[0]["vocab_embedding.weight"][ids[k + 1 :]], mctp[0][f"mctp.{k}.embed_norm.weight"])
            h = norm(hidden[:rows], mctp[0][f"mctp.{k}.hidden_norm.weight"])
            x = torch.cat([F.linear(torch.cat([e, h], 1), w[f"mctp.{k}.proj.weight"]) for w in mctp], dim=1)
            hidden = norm(trt_layer(x, mctp, f"mctp.{k}.layer", SMALL), mctp[0]["ln_f.weight"])
            torch.testing.assert_close(hidden, wanted, rtol=1e-4, atol=1e-4)
