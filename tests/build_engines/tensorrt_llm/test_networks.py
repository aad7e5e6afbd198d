"""TensorRT-LLM networks: what they compute, held against the reference engine; options; the dry run where it can."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import tensorrt_llm_double as double
from build_engines.tensorrt_llm.networks.build import build_engine
from build_engines.tensorrt_llm.networks.options import NetworkOptions
from language_models import random_weights
from vita_audio.checkpoint.configs import LanguageModelConfig
from vita_audio.contract.errors import EngineError
from vita_audio.engines.interface import BurstRow, ExtendRow, Sampling
from vita_audio.engines.sampling import uniforms
from vita_audio.engines.torch.language_model import TorchLanguageModel
from vita_audio.models.language_model import LanguageModel

ROOT = Path(__file__).resolve().parents[3]
MODULES, VOCABULARY = 4, 96
CONFIG = LanguageModelConfig(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=1 + MODULES,
    num_attention_heads=4,
    num_key_value_heads=2,
    num_nextn_predict_layers=MODULES,
    max_position_embeddings=64,
)
#: Greedy, top-k, top-p with a penalty that matters.
SAMPLINGS = (
    Sampling(repetition_penalty=1.3),
    Sampling(temperature=0.9, top_k=5, repetition_penalty=1.05, seed=7),
    Sampling(temperature=1.4, top_k=16, top_p=0.8, repetition_penalty=1.5, seed=8),
)
GREEDY = (Sampling(repetition_penalty=1.3), Sampling(repetition_penalty=0.7), Sampling())
BANNED = (90, 95)


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of the MCTP network, over PyTorch."""
    double.install(monkeypatch)
    from build_engines.tensorrt_llm.networks import mctp

    return mctp


def build_mctp(networks: Any, options: NetworkOptions, weights: dict[str, torch.Tensor]) -> Any:
    """The network with the weights of a released checkpoint under their new names."""
    mapping = SimpleNamespace(tp_group=None, tp_size=1)
    config = SimpleNamespace(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=MODULES, norm_epsilon=CONFIG.rms_norm_eps,
        dtype="float32", mapping=mapping, position_embedding_type=None,
    )  # fmt: skip
    network, reference = networks.VitaMctp(config, options), LanguageModel(CONFIG)
    reference.load_state_dict(weights)
    network.vocab_embedding.weight = weights["model.embed_tokens.weight"]
    network.ln_f.weight = weights["model.norm.weight"]
    network.lm_head.weight = weights["lm_head.weight"][options.head_first_id :]
    for k, module in enumerate(network.mctp):
        module.embed_norm.weight = weights[f"mtp_embed_norms.{k}.weight"]
        module.hidden_norm.weight = weights[f"mtp_hidden_norms.{k}.weight"]
        module.proj.weight = weights[f"mtp_projs.{k}.weight"]
        module.layer.reference = reference.model.layers[CONFIG.backbone_layers + k]
    network.rotary = reference.rotary
    return network


def causal(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """Attention of packed streams without a past."""
    parts = [
        torch.nn.functional.scaled_dot_product_attention(
            *(x.transpose(0, 1)[None] for x in three), is_causal=True, enable_gqa=True
        )[0].transpose(0, 1)
        for three in zip(*(x.as_subclass(torch.Tensor).split(counts) for x in (q, k, v)), strict=True)
    ]
    return torch.cat(parts)


def sampling_inputs(networks: Any, samplings: Sequence[Sampling], seen: torch.Tensor) -> Any:
    """How each stream of a burst samples, as the network reads it."""
    sampled = [b for b, sampling in enumerate(samplings) if not sampling.greedy]
    token_rows = np.arange(len(samplings))
    token_rows[sampled] = len(samplings) + np.arange(len(sampled))
    drawn = [samplings[b] for b in sampled]
    return networks.SamplingInputs(
        seen=double.tensor(seen),
        penalty=double.tensor([s.repetition_penalty for s in samplings]),
        token_rows=double.tensor(token_rows),
        sampled_rows=double.tensor(np.array(sampled, np.int32)),
        inv_temp=double.tensor([1 / s.temperature for s in drawn]),
        top_k=double.tensor(np.array([s.top_k for s in drawn], np.int32)),
        top_p=double.tensor([s.top_p for s in drawn]),
        uniform=double.tensor(np.array([uniforms(s.seed, 1, MODULES) for s in drawn], np.float32).reshape(-1, MODULES)),
    )


@torch.inference_mode()
@pytest.mark.parametrize("head_first_id", [0, 64])
@pytest.mark.parametrize("streams", [SAMPLINGS, GREEDY, SAMPLINGS[1:]], ids=["mixed", "greedy", "sampled"])
def test_the_cascade_draws_the_tokens_of_the_reference(
    networks: Any, head_first_id: int, streams: tuple[Sampling, ...]
) -> None:
    """Streams of different lengths and a prefill chunk, in one packed burst; only those that sample are sorted."""
    weights = random_weights(CONFIG, seed=3)
    options = NetworkOptions(max_num_tokens=256, head_first_id=head_first_id, candidates=16, banned_ids=BANNED)
    rng = np.random.default_rng(5)
    banned = sorted({*BANNED, *range(head_first_id)})
    backbone = TorchLanguageModel(CONFIG, weights, slots=4, context=64)
    reference = TorchLanguageModel(CONFIG, weights, slots=4, context=64, banned_ids=banned)
    ids, hidden, wanted, rows = [], [], [], []
    for slot, sampling in enumerate((*streams, Sampling())):
        prompt = rng.integers(0, VOCABULARY, 5 + 3 * slot).tolist()
        for engine in (backbone, reference):
            engine.begin(slot, sampling)
        prefill = slot == len(streams)
        first = backbone.extend([ExtendRow(slot, 0, prompt, 0)])[0]
        assert first is not None
        reference.extend([ExtendRow(slot, 0, prompt, None)])
        reference._seen[slot, first] = True
        known = [*prompt[1:], first]
        count = len(known) - (MODULES - 1) if prefill else len(known)
        row = BurstRow(slot, 0, count, known, 0 if prefill else MODULES, None if prefill else 1)
        rows.append(row)
        wanted.append(known[count:] if prefill else reference.burst([row])[0])
        ids.append(known[:count])
        hidden.append(backbone._hidden[slot, :count])
    counts = [len(part) for part in ids]
    total, batch = sum(counts), len(rows)
    shift = np.arange(1, total + 1)
    shift[np.cumsum(counts) - 1] = total + np.arange(batch)
    forced = np.full((batch, MODULES), -1)
    forced[-1, : MODULES - 1] = wanted[-1]
    samplings = [*streams, Sampling()]
    network = build_mctp(networks, options, weights)
    cos, sin = network.rotary(torch.cat([torch.arange(count) for count in counts]))
    network.forward(
        input_ids=double.tensor([token for part in ids for token in part]),
        hidden_states_in=double.tensor(torch.cat(hidden)),
        shift_index=double.tensor(shift),
        forced_tokens=double.tensor(forced).int(),
        sampling=sampling_inputs(networks, samplings, reference_seen(rows, backbone)[:, head_first_id:]),
        last_token_ids=double.tensor(np.cumsum(counts)),
        kv_cache_params=None,
        attention_params=SimpleNamespace(cos=cos, sin=sin, attend=lambda q, k, v: causal(q, k, v, counts)),
    )
    got = double.OUTPUTS["mctp_tokens"].tolist()
    assert got[:-1] == wanted[:-1]
    assert got[-1][: MODULES - 1] == wanted[-1]
    assert len({token for row in got for token in row}) > 4
    assert [sum(not s.greedy for s in streams)] * MODULES == double.SORTED_ROWS


def reference_seen(rows: list[BurstRow], backbone: TorchLanguageModel) -> torch.Tensor:
    """What each stream had seen before its burst: bool [streams, vocabulary]."""
    return torch.stack([backbone._seen[row.slot] for row in rows])


def test_a_uniform_at_the_edge_takes_the_last_candidate_with_mass(networks: Any) -> None:
    from build_engines.tensorrt_llm.networks.sampling import Sampler, SamplingInputs

    one = double.tensor([1.0])
    inputs = SamplingInputs(
        seen=double.tensor([[False] * 4]),
        penalty=one,
        token_rows=double.tensor([1]),
        sampled_rows=double.tensor([0]),
        inv_temp=one,
        top_k=double.tensor([3]).int(),
        top_p=one,
        uniform=double.tensor([[np.nextafter(np.float32(1), np.float32(0))]]),
    )
    logits = double.tensor([[0.0, 3.0, 1.0, 2.0]])
    assert Sampler(inputs, 4, 4, []).draw(logits, 0).tolist() == [[2]]  # third best, not the fourth
    assert Sampler(inputs, 4, 4, [2]).draw(logits, 0).tolist() == [[0]]  # banned: the next best moves up


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_batch_size", 0),
        ("max_seq_len", 8),
        ("max_num_tokens", 63),
        ("candidates", 4096),
        ("prompt_table_rows", -1),
    ],
)
def test_options_out_of_range_are_named(field: str, value: int) -> None:
    with pytest.raises(EngineError, match=f"{field}: {value}"):
        replace(NetworkOptions(), **{field: value})


def test_the_head_is_cut_from_its_first_id_on() -> None:
    options = NetworkOptions(head_first_id=151640, banned_ids=(5, 151642, 168071))
    assert options.head_rows(168072) == 16432
    assert options.banned_rows(168072) == [2, 16431]
    with pytest.raises(EngineError, match="leaves 60 of 151700 ids"):
        options.head_rows(151700)


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_llm") is not None, reason="tensorrt_llm is installed")
def test_building_without_tensorrt_llm_says_where_to_build(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"tensorrt_llm 1\.2\.1 is not installed"):
        build_engine("mctp", tmp_path, tmp_path / "engine", NetworkOptions())


@pytest.mark.timeout(900)
@pytest.mark.skipif(
    "TRTLLM_SRC" not in os.environ,
    reason="needs TRTLLM_SRC, a TensorRT-LLM source tree (docs/tensorrt_llm.md 8)",
)
def test_dry_run() -> None:
    """`TRTLLM_PYTHON` names the Python that has the packages of the sources, when it is not this one."""
    python = os.environ.get("TRTLLM_PYTHON", sys.executable)
    command = [python, "-m", "build_engines.tensorrt_llm.networks", "dry_run", "--size", "7b"]
    made = subprocess.run(
        [*command, "--prompt-table-rows", "2048"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    lines = made.stdout.splitlines()
    assert "28 GPTAttention" in next(line for line in lines if line.startswith("backbone:"))
    assert "10 GPTAttention" in next(line for line in lines if line.startswith("mctp:"))
    assert "3.792 G parameters" in made.stdout
    names = {line.split()[1] for line in lines if line.startswith(("  in ", "  out "))}
    assert names >= {"hidden_states_all", "logits", "prompt_embedding_table", "mctp_tokens", "seen", "forced_tokens"}
    assert all("use_paged_context_fmha 1" in line for line in lines if "attention plugin" in line)
