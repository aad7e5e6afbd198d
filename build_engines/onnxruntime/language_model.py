"""Language model checkpoint -> two ONNX graphs for ONNX Runtime: one backbone step, one whole MCTP burst.

The graphs are written node by node rather than traced, because what makes them fast is not in the PyTorch modules:
GroupQueryAttention over caches that are bound in place, merged projections, fused norms, and sampling inside the graph,
so that a burst is one run with no return to the host between modules (docs/onnx.md, docs/model.md).

    backbone.onnx   tokens [B, S] + caches -> H0 [B, S, hidden], sampled token [B]       (B > 1 only with S = 1);
                    of a Plus checkpoint also rows of embeddings [N, hidden] and their places
    mctp.onnx       tokens [1, R], H0 rows [1, R, hidden] + caches -> sampled tokens [1, K]
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto

from build_engines.onnxruntime.graph import END, FLOAT, FUSED, INT64, Graph, weights_of
from vita_audio.checkpoint.configs import LANGUAGE_MODEL, SENSEVOICE, TOKENIZER_FILE, LanguageModelConfig
from vita_audio.checkpoint.language_model import load_language_model
from vita_audio.text.vocabulary import Vocabulary

if TYPE_CHECKING:
    from build_engines.pipeline import Build, Facts, Needed


class _LanguageModelGraph(Graph):
    """The parts both graphs share: decoder layers over in-place caches, norms, head and sampling."""

    def __init__(
        self, name: str, config: LanguageModelConfig, tensors: Mapping[str, NDArray], banned: Sequence[int]
    ) -> None:
        super().__init__(name)
        self.config, self.tensors, self.banned = config, tensors, banned
        # GroupQueryAttention rotates heads of a multiple of 16: pad each rotary half with zeros up to that.
        self.padded_dim = -(-config.head_dim // 16) * 16
        self.greedy = ""

    def rms_norm(self, x: str, key: str) -> str:
        weight = self.weight(key, self.tensors[key])
        return self.op("SimplifiedLayerNormalization", x, weight, epsilon=self.config.rms_norm_eps, axis=-1)

    def add_rms_norm(self, x: str, residual: str, key: str) -> tuple[str, str]:
        """(RMSNorm(x + residual), x + residual) in one node."""
        weight = self.weight(key, self.tensors[key])
        names = self.ops(
            "SkipSimplifiedLayerNormalization", x, residual, weight,
            outputs=4, domain=FUSED, epsilon=self.config.rms_norm_eps,
        )  # fmt: skip
        self.nodes[-1].output[1] = self.nodes[-1].output[2] = ""
        return names[0], names[3]

    def _pad_heads(self, weight: NDArray, heads: int, halves: int) -> NDArray:
        """weight [heads * dim, ...] -> [heads * padded, ...], each of `halves` parts of a head padded on its own."""
        dim, rest = self.config.head_dim, weight.shape[1:]
        parts = weight.reshape(heads, halves, dim // halves, *rest)
        missing = (self.padded_dim - dim) // halves
        padded = np.pad(parts, [(0, 0), (0, 0), (0, missing)] + [(0, 0)] * len(rest))
        return padded.reshape(heads * self.padded_dim, *rest)

    def layer(self, index: int, x: str, residual: str | None, cache: tuple[str, str]) -> tuple[str, str]:
        """One decoder layer. The hidden state is x + residual; returns it again as such a pair, not yet added."""
        c, prefix = self.config, f"model.layers.{index}."
        key = prefix + "input_layernorm.weight"
        if residual is None:
            normed, residual = self.rms_norm(x, key), x
        else:
            normed, residual = self.add_rms_norm(x, residual, key)
        heads, kv = c.num_attention_heads, c.num_key_value_heads
        parts = (("q", heads, 2), ("k", kv, 2), ("v", kv, 1))
        weight = np.concatenate(
            [self._pad_heads(self.tensors[f"{prefix}self_attn.{n}_proj.weight"], h, s) for n, h, s in parts]
        )
        bias = np.concatenate(
            [self._pad_heads(self.tensors[f"{prefix}self_attn.{n}_proj.bias"], h, s) for n, h, s in parts]
        )
        qkv = self.op("MatMul", normed, self.weight(prefix + "qkv.weight", weight.T))
        qkv = self.op("Add", qkv, self.weight(prefix + "qkv.bias", bias))
        node = ["GroupQueryAttention", qkv, "", "", f"past_{cache[0]}", f"past_{cache[1]}"]
        attended, *present = self.ops(
            *node, "last_row", "total_length", "cos", "sin", outputs=3, domain=FUSED,
            num_heads=heads, kv_num_heads=kv, do_rotary=1, scale=c.head_dim**-0.5,
        )  # fmt: skip
        for name, made in zip(cache, present, strict=True):
            self.nodes[-1].output[list(self.nodes[-1].output).index(made)] = f"present_{name}"
        output = self.tensors[prefix + "self_attn.o_proj.weight"]  # [hidden, heads * dim]
        output = self._pad_heads(output.T, heads, 1)
        x = self.op("MatMul", attended, self.weight(prefix + "o_proj.weight", output))
        normed, residual = self.add_rms_norm(x, residual, prefix + "post_attention_layernorm.weight")
        gate_up = np.concatenate([self.tensors[f"{prefix}mlp.{n}_proj.weight"] for n in ("gate", "up")])
        both = self.op("MatMul", normed, self.weight(prefix + "gate_up.weight", gate_up.T))
        gate, up = self.ops("Split", both, outputs=2, axis=-1, num_outputs=2)
        silu = self.op("QuickGelu", gate, domain=FUSED, alpha=1.0)
        down = self.weight(prefix + "down.weight", self.tensors[prefix + "mlp.down_proj.weight"].T)
        return self.op("MatMul", self.op("Mul", silu, up), down), residual

    def cache_inputs(self, layers: int) -> list[tuple[str, str]]:
        """Declare `layers` K/V caches [B, kv_heads, context, dim], bound as inputs and outputs to the same memory."""
        c, names = self.config, list[tuple[str, str]]()
        shape: list[int | str] = ["batch", c.num_key_value_heads, "context", self.padded_dim]
        for index in range(layers):
            pair = (f"key_{index}", f"value_{index}")
            names.append(pair)
            for name in pair:
                self.input(f"past_{name}", FLOAT, shape)
                self.declare_output(f"present_{name}", FLOAT, shape)
        self.input("last_row", TensorProto.INT32, ["batch"])  # cache index of the last row: past + S - 1
        self.input("total_length", TensorProto.INT32, [1])
        half = self.padded_dim // 2
        self.input("cos", FLOAT, ["context", half])
        self.input("sin", FLOAT, ["context", half])
        return names

    def embed(self, tokens: str) -> str:
        return self.op("Gather", self.weight("embed", self.tensors["model.embed_tokens.weight"]), tokens)

    def head(self, hidden: str) -> str:
        """hidden [B, hidden] -> logits [B, vocab]; tokens that must never come out are at the lowest float."""
        logits = self.op("MatMul", hidden, self.weight("lm_head", self.tensors["lm_head.weight"].T))
        if len(self.banned):
            bias = np.zeros(self.config.vocab_size, np.float32)
            bias[list(self.banned)] = np.finfo(np.float32).min / 4
            logits = self.op("Add", logits, self.weight("banned", bias))
        return logits

    def sampling_inputs(self, draws: int) -> None:
        # Ids the repetition penalty applies to, any order, repeats allowed: shorter lists are padded with their own.
        self.input("seen", INT64, ["batch", "seen_ids"])
        self.input("penalty", FLOAT, ["batch", 1])
        self.input("temperature", FLOAT, ["batch", 1])
        self.input("top_k", INT64, ["batch", 1])
        self.input("top_p", FLOAT, ["batch", 1])
        self.input("uniform", FLOAT, ["batch", draws])
        self.input("candidates", INT64, [1])  # the largest top_k of the batch: how far to sort
        one = self.op("Squeeze", self.ints(1))
        self.greedy = self.op("Equal", self.op("Squeeze", "candidates"), one)

    def sample(self, logits: str, seen: str, uniform: str) -> str:
        """logits [B, vocab], seen [B, ids], uniform [B, 1] -> token [B, 1].

        Order of Hugging Face's processors: repetition penalty, temperature, top-k, top-p. Greedy (candidates = 1) takes
        the short branch.
        """
        picked = self.op("GatherElements", logits, seen, axis=1)  # [B, ids]
        down, up = self.op("Div", picked, "penalty"), self.op("Mul", picked, "penalty")
        penalised = self.op("Where", self.op("Less", picked, self.number(0.0)), up, down)
        logits = self.op("ScatterElements", logits, seen, penalised, axis=1)
        names = {"then_branch": self._greedy(logits), "else_branch": self._draw(logits, uniform)}
        return self.op("If", self.greedy, **names)

    def _greedy(self, logits: str) -> onnx.GraphProto:
        g = self.branch("greedy")
        return g.as_branch(g.op("ArgMax", logits, axis=1, keepdims=1), INT64, ["batch", 1])

    def _draw(self, logits: str, uniform: str) -> onnx.GraphProto:
        """The inverse of the cumulative distribution, after temperature, top-k and top-p, at `uniform`."""
        g = self.branch("draw")
        values, ids = g.ops("TopK", logits, "candidates", outputs=2, axis=-1, largest=1, sorted=1)
        rank = g.op("Range", *(g.op("Squeeze", x) for x in (self.ints(0), "candidates", self.ints(1))))
        scaled = g.op("Div", values, "temperature")
        scaled = g.op("Where", g.op("Less", rank, "top_k"), scaled, self.number(-1e30))
        p = g.op("Softmax", scaled, axis=-1)
        before = g.op("CumSum", p, self.ints(1), exclusive=1)
        p = g.op("Where", g.op("Less", before, "top_p"), p, self.number(0.0))
        cumulative = g.op("CumSum", p, self.ints(1))
        total = g.op("ReduceSum", p, self.ints(1), keepdims=1)
        passed = g.op("LessOrEqual", cumulative, g.op("Mul", total, uniform))
        chosen = g.op("ReduceSum", g.op("Cast", passed, to=INT64), self.ints(1), keepdims=1)
        # A uniform draw just below 1 can pass every candidate by rounding: the last one with any mass is meant.
        alive = g.op("Cast", g.op("Greater", p, self.number(0.0)), to=INT64)
        last = g.op("Sub", g.op("ReduceSum", alive, self.ints(1), keepdims=1), self.ints(1))
        return g.as_branch(g.op("GatherElements", ids, g.op("Min", chosen, last), axis=1), INT64, ["batch", 1])


def _backbone(
    config: LanguageModelConfig, tensors: Mapping[str, NDArray], banned: Sequence[int], embedded: bool
) -> Graph:
    g = _LanguageModelGraph("backbone", config, tensors, banned)
    x = g.embed(g.input("tokens", INT64, ["batch", "rows"]))
    if embedded:  # none at all in a decode step: then nothing is written, in place
        places = g.input("places", INT64, ["embedded", 2])  # (stream of the batch, row)
        x = g.op("ScatterND", x, places, g.input("embedded", FLOAT, ["embedded", config.hidden_size]))
    caches = g.cache_inputs(config.backbone_layers)
    g.sampling_inputs(draws=1)
    residual: str | None = None
    for index, cache in enumerate(caches):
        x, residual = g.layer(index, x, residual, cache)
    assert residual is not None
    hidden, _ = g.add_rms_norm(x, residual, "model.norm.weight")
    last = g.op("Gather", hidden, g.integer(-1), axis=1)  # [B, hidden]
    g.output("hidden", hidden, FLOAT, ["batch", "rows", config.hidden_size])
    g.output("token", g.sample(g.head(last), "seen", "uniform"), INT64, ["batch", 1])
    return g


def _mctp(config: LanguageModelConfig, tensors: Mapping[str, NDArray], banned: Sequence[int]) -> Graph:
    g = _LanguageModelGraph("mctp", config, tensors, banned)
    modules = config.mctp_modules
    embedded = g.embed(g.input("tokens", INT64, [1, "rows"]))  # token j + 1 of rows j
    hidden = g.input("hidden", FLOAT, [1, "rows", config.hidden_size])
    # A prefill chunk knows the tokens after its rows: forced[k] >= 0 stands in for what module k samples.
    forced = g.input("forced", INT64, [1, modules])
    caches = g.cache_inputs(modules)
    g.sampling_inputs(draws=modules)
    seen, sampled = "seen", []
    uniforms = g.ops("Split", "uniform", outputs=modules, axis=1, num_outputs=modules)
    forces = g.ops("Split", forced, outputs=modules, axis=1, num_outputs=modules)
    for k in range(modules):
        both = [g.rms_norm(embedded, f"mtp_embed_norms.{k}.weight"), g.rms_norm(hidden, f"mtp_hidden_norms.{k}.weight")]
        projection = g.weight(f"mtp_projs.{k}", tensors[f"mtp_projs.{k}.weight"].T)
        x = g.op("MatMul", g.op("Concat", *both, axis=-1), projection)
        x, residual = g.layer(config.backbone_layers + k, x, None, caches[k])
        hidden, _ = g.add_rms_norm(x, residual, "model.norm.weight")
        last = g.op("Gather", hidden, g.integer(-1), axis=1)
        token = g.sample(g.head(last), seen, uniforms[k])
        token = g.op("Where", g.op("Less", forces[k], g.ints(0)), token, forces[k])
        sampled.append(token)
        if k + 1 < modules:
            seen = g.op("Concat", seen, token, axis=1)
            later = g.op("Slice", embedded, g.ints(1), g.ints(END), g.ints(1))
            embedded = g.op("Concat", later, g.embed(token), axis=1)
    g.output("sampled", g.op("Concat", *sampled, axis=1), INT64, [1, modules])
    return g


def run(build: Build, folder: Path, needed: Needed) -> Facts:
    """A stage of a build."""
    config, tensors = load_language_model(build.checkpoint / LANGUAGE_MODEL)
    vocabulary = Vocabulary.from_tokenizer(build.checkpoint / TOKENIZER_FILE)
    banned = vocabulary.banned_ids(config.vocab_size)
    plus = build.speech_input == SENSEVOICE
    export_language_model(config, tensors, folder / LANGUAGE_MODEL, banned_ids=banned, embedded=plus)
    return {}


def export_language_model(
    config: LanguageModelConfig,
    tensors: Mapping[str, torch.Tensor],
    folder: Path,
    banned_ids: Sequence[int] = (),
    embedded: bool = False,
) -> None:
    """Write backbone.onnx, mctp.onnx (when K > 0) and model.json (sizes) into `folder`.

    Args:
        tensors: the checkpoint, released keys (`vita_audio.checkpoint.language_model.load_language_model`).
        banned_ids: token ids that must never be sampled (padding rows of the vocabulary).
        embedded: the checkpoint is a Plus one: prompts bring rows of embeddings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arrays = weights_of(tensors)
    if config.tie_word_embeddings:
        arrays.setdefault("lm_head.weight", arrays["model.embed_tokens.weight"])
    _backbone(config, arrays, banned_ids, embedded).save(folder / "backbone.onnx", {}, check=False)
    if config.mctp_modules:
        _mctp(config, arrays, banned_ids).save(folder / "mctp.onnx", {}, check=False)
    (folder / "model.json").write_text(json.dumps(asdict(config), indent=1) + "\n")
