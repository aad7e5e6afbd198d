"""The MCTP network: all K modules in one engine, so that a burst is one call with no return to the host.

Module k reads, for each row j, the embedding of token j + k + 1 and H_k[j]; its last row gives a token; its hidden
states feed module k + 1 (docs/model.md, "The fused cascade"). All modules share one length, one block table,
one set of metadata: layer k of the engine is module k. RoPE turns by the cache index, which the constant offset of the
reference cannot be told from.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import tensorrt as trt
from tensorrt_llm._utils import pad_vocab_size, str_dtype_to_trt
from tensorrt_llm.functional import (
    Tensor,
    cast,
    concat,
    gather_last_token_logits,
    gt,
    index_select,
    select,
    unsqueeze,
    view,
    where,
)
from tensorrt_llm.layers import Attention, AttentionParams, ColumnLinear, Embedding, KeyValueCacheParams, RmsNorm
from tensorrt_llm.models.modeling_utils import PretrainedModel
from tensorrt_llm.models.qwen.config import QWenConfig
from tensorrt_llm.models.qwen.model import QWenDecoderLayer
from tensorrt_llm.module import Module, ModuleList

from build_engines.tensorrt_llm.networks.options import NetworkOptions
from build_engines.tensorrt_llm.networks.sampling import Sampler, SamplingInputs

OUTPUT = "mctp_tokens"


class MctpModule(Module):
    """Two norms, a projection of both halves, one decoder layer with its own KV."""

    def __init__(self, config: QWenConfig, index: int) -> None:
        super().__init__()
        width, mapping = config.hidden_size, config.mapping
        norm = {"normalized_shape": width, "eps": config.norm_epsilon, "dtype": config.dtype}
        self.embed_norm, self.hidden_norm = RmsNorm(**norm), RmsNorm(**norm)
        self.proj = ColumnLinear(
            2 * width, width, bias=False, dtype=config.dtype, tp_group=mapping.tp_group, tp_size=mapping.tp_size
        )
        self.layer = QWenDecoderLayer(config, index)

    def forward(self, embedded: Tensor, hidden: Tensor, kv: KeyValueCacheParams, attention: AttentionParams) -> Tensor:
        """Both [tokens, width] -> [tokens, width], before the final norm."""
        x = self.proj(concat([self.embed_norm(embedded), self.hidden_norm(hidden)], dim=-1))
        x, _ = self.layer(x, use_cache=True, kv_cache_params=kv, attention_params=attention)
        return x


class VitaMctp(PretrainedModel):
    """Inputs beyond those of a decoder (docs/tensorrt_llm.md 3.2); T tokens of B streams, K modules, R head rows.

    hidden_states_in  dtype [T, hidden]   H0 of the rows
    shift_index       int32 [T]           t -> t + 1; the last token of stream b -> T + b; the same for every module
    forced_tokens     int32 [B, K]        >= 0: the known token a prefill chunk continues with; -1: sample
    seen, penalty, token_rows, sampled_rows, inv_temp, top_k, top_p, uniform   `sampling.SamplingInputs`

    Output: mctp_tokens int32 [B, K], token ids.
    `config.num_hidden_layers` is K; weights are `mctp.K.*`, `vocab_embedding`, `ln_f`, `lm_head`.
    """

    config_class = QWenConfig

    def __init__(self, config: QWenConfig, options: NetworkOptions) -> None:
        super().__init__(config)
        self.options, mapping = options, config.mapping
        self.head_rows = pad_vocab_size(options.head_rows(config.vocab_size), mapping.tp_size)
        self.vocab_embedding = Embedding(config.vocab_size, config.hidden_size, dtype=config.dtype)
        self.mctp = ModuleList([MctpModule(config, index) for index in range(config.num_hidden_layers)])
        self.ln_f = RmsNorm(normalized_shape=config.hidden_size, eps=config.norm_epsilon, dtype=config.dtype)
        self.lm_head = ColumnLinear(
            config.hidden_size,
            self.head_rows,
            bias=False,
            dtype=config.dtype,
            tp_group=mapping.tp_group,
            tp_size=mapping.tp_size,
        )
        Attention.create_attention_const_params(self, config)  # RoPE tables: only a decoder class makes its own
        self.position_embedding_type = config.position_embedding_type

    def forward(
        self,
        input_ids: Tensor,
        hidden_states_in: Tensor,
        shift_index: Tensor,
        forced_tokens: Tensor,
        sampling: SamplingInputs,
        last_token_ids: Tensor,
        kv_cache_params: KeyValueCacheParams,
        attention_params: AttentionParams,
        **unused: Any,  # position ids and masks, which the attention plugin does without
    ) -> None:
        attention = Attention.fill_attention_params(self, attention_params)
        options, vocab_size = self.options, self.config.vocab_size
        padding = range(options.head_rows(vocab_size), self.head_rows)
        banned = [*options.banned_rows(vocab_size), *padding]
        sampler = Sampler(sampling, self.head_rows, options.candidates, banned)
        ids, hidden, tokens = input_ids, hidden_states_in, []
        for k, module in enumerate(self.mctp):
            hidden = self.ln_f(module(self.vocab_embedding(ids), hidden, kv_cache_params, attention))
            last = gather_last_token_logits(hidden, last_token_ids, remove_input_padding=True)  # [B, hidden]
            row = sampler.draw(cast(self.lm_head(last), "float32"), k)
            sampler.remember(row)
            forced = unsqueeze(select(forced_tokens, 1, k), 1)
            token = where(gt(forced, -1), forced, row + options.head_first_id)  # [B, 1]
            tokens.append(token)
            ids = index_select(concat([ids, view(token, [-1])]), 0, shift_index)
        concat(tokens, dim=1).mark_output(OUTPUT, trt.int32)

    def prepare_inputs(self, **limits: Any) -> dict[str, Any]:
        """Those of a decoder, and what only this network has."""
        inputs = super().prepare_inputs(**limits)
        # The builder wants equal ranges for dimensions of equal names: take them from the decoder's own inputs.
        tokens = OrderedDict([("num_tokens", _range(inputs["input_ids"]))])
        streams = OrderedDict([("batch_size_last_token_ids", _range(inputs["last_token_ids"]))])
        # From none to all of them: a greedy burst has no row to draw for.
        sampled = OrderedDict([("sampled", [[0, *_range(inputs["last_token_ids"])[0][1:]]])])
        modules, hidden = self.config.num_hidden_layers, self.config.hidden_size
        per_module, per_row = [("modules", [modules])], [("head_rows", [self.head_rows])]

        def rows(
            name: str, dtype: Any, of: OrderedDict[str, Any], more: Sequence[tuple[str, list[int]]] = ()
        ) -> Tensor:
            shape = [-1, *(size for _, (size,) in more)]
            return Tensor(name=name, dtype=dtype, shape=shape, dim_range=OrderedDict([*of.items(), *more]))

        return inputs | {
            "hidden_states_in": Tensor(
                name="hidden_states_in",
                dtype=str_dtype_to_trt(self.config.dtype),
                shape=[-1, hidden],
                dim_range=OrderedDict([*tokens.items(), ("hidden_size", [hidden])]),
            ),
            "shift_index": Tensor(name="shift_index", dtype=trt.int32, shape=[-1], dim_range=tokens),
            "forced_tokens": rows("forced_tokens", trt.int32, streams, per_module),
            "sampling": SamplingInputs(
                seen=rows("seen", trt.bool, streams, per_row),
                penalty=rows("penalty", trt.float32, streams),
                token_rows=rows("token_rows", trt.int32, streams),
                sampled_rows=rows("sampled_rows", trt.int32, sampled),
                inv_temp=rows("inv_temp", trt.float32, sampled),
                top_k=rows("top_k", trt.int32, sampled),
                top_p=rows("top_p", trt.float32, sampled),
                uniform=rows("uniform", trt.float32, sampled, per_module),
            ),
        }


def _range(tensor: Tensor) -> list[list[int]]:
    """[[min, opt, max]] of a network input's first dimension: one optimisation profile."""
    (profile,) = tensor.profiles
    return [[int(shape[0]) for shape in (profile.min, profile.opt, profile.max)]]
