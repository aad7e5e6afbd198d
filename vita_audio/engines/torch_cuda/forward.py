"""What a program of the torch_cuda engine computes: caches of all slots, and a function of them for each shape.

A function reads integers from the fields of its program and works on tensors of fixed addresses, so that it can be
captured as a CUDA graph. A burst is one function: all modules, head and sampling, no return to the host in between.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from vita_audio.checkpoint.configs import LanguageModelConfig
from vita_audio.engines.torch.sampler import SamplingTable
from vita_audio.engines.torch_cuda import network
from vita_audio.engines.torch_cuda.cuda_graphs import Fields, Function
from vita_audio.engines.torch_cuda.kernels.operations import operations
from vita_audio.engines.torch_cuda.kernels.self_check import Case, faulty
from vita_audio.engines.torch_cuda.network import Attend, Spans
from vita_audio.engines.torch_cuda.settings import Settings
from vita_audio.engines.torch_cuda.shapes import Shape
from vita_audio.engines.torch_cuda.weights import Weights

UNIFORM_STEP = 2.0**-24  # uniform draws are multiples of this: they travel as integers


class Forward:
    """Device state of an engine and the functions that run on it.

    Args:
        config: sizes.
        weights: decide device and number type.
        settings: slots, context and options.
        banned_ids: token ids that must never be sampled.

    Attributes:
        seen: bool [slots + 1, vocab], ids of prompt and output.
        table: how each slot samples.
        kernels_off: names that run as their references: those asked for, and those that the check at the start found.
        no_row, no_slot: cache row and slot that no stream owns; padding reads and writes there.
    """

    def __init__(
        self, config: LanguageModelConfig, weights: Weights, settings: Settings, banned_ids: Sequence[int]
    ) -> None:
        self.config, self.settings, self.weights = config, settings, weights
        self.device, slots = weights.embedding.device, settings.slots
        self._rotary = network.rotary_tables(settings.context, config.head_dim, config.rope_theta, self.device)
        self.no_row, self.no_slot = slots * settings.context, slots
        like = weights.embedding
        kv = (2, config.num_key_value_heads, config.head_dim)
        self.cache = like.new_zeros(config.num_hidden_layers, self.no_row + 1, *kv)
        self.hidden = like.new_zeros(self.no_row + 1, config.hidden_size)  # H0 of each position
        self.seen = torch.zeros(slots + 1, config.vocab_size, dtype=torch.bool, device=self.device)
        self.table = SamplingTable.create(slots, self.device)
        self._banned = torch.zeros(config.vocab_size, dtype=torch.bool, device=self.device)
        self._banned[list(banned_ids)] = True
        gpu = torch.cuda.get_device_properties(self.device) if self.device.type == "cuda" else None
        self.processors = gpu.multi_processor_count if gpu else 1
        self.capability = 10 * gpu.major + gpu.minor if gpu else 90
        off, build = settings.kernels_off, partial(operations, self.device, self.capability)
        if gpu:
            off = faulty(build, Case(config, settings.context, like[:0], self.processors, self.capability), off)
        self.operations, self.kernels_off = build(off), off
        auto = "split" if gpu and "attention" not in off else "rectangle"
        self.attention = auto if settings.attention == "auto" else settings.attention

    def function(self, kind: str, shape: Shape) -> tuple[Fields, Function]:
        """The inputs and the function of an "extend" or a "burst"."""
        return self._extend(shape) if kind == "extend" else self._burst(shape)

    def _shared_fields(self, shape: Shape, draws: int) -> Fields:
        rows, streams = (shape.rows,), (shape.streams,)
        return {
            "slot": (streams, 0),
            "first": (streams, 0),
            "count": (streams, 0),
            "start": (streams, 0),
            "last": (streams, 0),
            "seen_slot": (streams, self.no_slot),  # where a sampled id is noted
            "uniform": ((shape.streams, draws), 0),
            "place": (rows, shape.streams * shape.stream_rows),
            "position": (rows, 0),
            "cache_row": (rows, self.no_row),
        }

    def _attend(self, shape: Shape, spans: Spans) -> Attend:
        if self.attention == "rectangle":
            config = self.config
            group = config.num_attention_heads // config.num_key_value_heads
            return network.attend_rectangle(shape, spans, self.settings.slots, group)
        from vita_audio.engines.torch_cuda.split_attention import attend_split  # Triton is not on CPU machines

        gpu = self.processors, self.capability
        return attend_split(shape, spans, self.settings.context, *gpu, self.operations.pdl)

    def _layers(self, shape: Shape, inputs: Mapping[str, Tensor]) -> Callable[[int, Tensor], Tensor]:
        """(number, x [rows, hidden]) -> what that layer makes of x; MCTP layers come after the backbone's."""
        spans = Spans(*(inputs[name] for name in Spans.__slots__))
        attend, eps = self._attend(shape, spans), self.config.rms_norm_eps
        weights = [*self.weights.layers, *(module.layer for module in self.weights.modules)]

        def run(index: int, x: Tensor) -> Tensor:
            cache = self.cache[index]
            return network.layer(x, weights[index], cache, self._rotary, spans, attend, self.operations, eps)

        return run

    def _sample(
        self, last: Tensor, inputs: Mapping[str, Tensor], table: SamplingTable, width: int, number: int, first_id: int
    ) -> Tensor:
        """Draw `number` of a call from the last row of each stream: [streams, hidden] -> ids [streams]."""
        logits = self.operations.linear(last, self.weights.head[first_id:]).float()  # [streams, ids]
        seen = self.seen[:, first_id:].index_select(0, inputs["slot"])
        uniform = inputs["uniform"][:, number] * UNIFORM_STEP
        return first_id + self.operations.draw(logits, seen, self._banned[first_id:], table, uniform, width)

    def _note(self, slot: Tensor, tokens: Tensor) -> None:
        self.seen.view(-1).index_fill_(0, slot * self.config.vocab_size + tokens, True)

    def _extend(self, shape: Shape) -> tuple[Fields, Function]:
        fields = self._shared_fields(shape, draws=1)
        fields["tokens"] = ((shape.rows,), 0)
        fields["seen_at"] = ((shape.rows,), self.no_slot * self.config.vocab_size)

        def extend(inputs: Mapping[str, Tensor]) -> Tensor | None:
            self.seen.view(-1).index_fill_(0, inputs["seen_at"], True)
            layer = self._layers(shape, inputs)
            x = F.embedding(inputs["tokens"], self.weights.embedding)
            for index in range(self.config.backbone_layers):
                x = layer(index, x)
            final, eps = self.operations.final_norm, self.config.rms_norm_eps
            _, last = final(x, self.weights.norm, eps, inputs["last"], self.hidden, inputs["cache_row"])
            if not shape.width:
                return None
            table = self.table.rows(inputs["slot"])
            tokens = self._sample(last, inputs, table, shape.width, 0, 0)
            self._note(inputs["seen_slot"], tokens)
            return tokens[:, None]

        return fields, extend

    def _burst(self, shape: Shape) -> tuple[Fields, Function]:
        modules, eps = self.config.mctp_modules, self.config.rms_norm_eps
        fields = self._shared_fields(shape, draws=modules)
        fields["ids"] = ((shape.streams, shape.stream_rows + modules), 0)  # tokens from position start + 1 on
        fields["id_at"] = ((shape.rows,), 0)  # where the token of a row is among the ids, for module 0
        fields["id_end"] = ((shape.streams,), 0)  # where the first sampled one goes
        fields["commit"] = ((shape.streams,), 0)

        def burst(inputs: Mapping[str, Tensor]) -> Tensor | None:
            layer, ops = self._layers(shape, inputs), self.operations
            table = self.table.rows(inputs["slot"])
            hidden = self.hidden
            hidden_at: Tensor | None = inputs["cache_row"]
            ids, sampled = inputs["ids"].flatten(), []
            drawn = inputs["seen_slot"] != self.no_slot  # the others know their ids: a chunk of a prompt
            for k, module in enumerate(self.weights.modules):
                norms = module.embed_norm, module.hidden_norm, eps
                both = ops.enter(ids, inputs["id_at"], k, self.weights.embedding, hidden, hidden_at, *norms)
                x = layer(self.config.backbone_layers + k, ops.linear(both, module.projection))
                (hidden, last), hidden_at = ops.final_norm(x, self.weights.norm, eps, inputs["last"]), None
                if not shape.width:
                    continue
                made = self._sample(last, inputs, table, shape.width, k, self.settings.first_mctp_id)
                place = inputs["id_end"] + k
                ids = ids.index_copy(0, place, torch.where(drawn, made, ids.index_select(0, place)))
                # Tokens past `commit` only fill the caches; the next burst runs those rows again.
                self._note(torch.where(k < inputs["commit"], inputs["seen_slot"], self.no_slot), made)
                sampled.append(made)
            return torch.stack(sampled, dim=1) if sampled else None

        return fields, burst
