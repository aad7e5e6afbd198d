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
from vita_audio.engines.torch_cuda.fp8 import part
from vita_audio.engines.torch_cuda.kernels import linear_table
from vita_audio.engines.torch_cuda.kernels.draw import Draws
from vita_audio.engines.torch_cuda.kernels.linear import Launches
from vita_audio.engines.torch_cuda.kernels.operations import operations
from vita_audio.engines.torch_cuda.kernels.self_check import Case, faulty
from vita_audio.engines.torch_cuda.network import Attend, Spans
from vita_audio.engines.torch_cuda.settings import Settings
from vita_audio.engines.torch_cuda.shapes import Shape
from vita_audio.engines.torch_cuda.weights import Weights, holds_fp8


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
        self._arrived = torch.zeros(slots, dtype=torch.int32, device=self.device)
        gpu = torch.cuda.get_device_properties(self.device) if self.device.type == "cuda" else None
        self.processors = gpu.multi_processor_count if gpu else 1
        self.capability = 10 * gpu.major + gpu.minor if gpu else 90
        off, build = settings.kernels_off, partial(operations, self.device, self.capability)
        launches = Launches.on(self.device, self.processors, self.capability) if gpu else None
        if gpu:
            build = partial(build, launches=launches)
            sizes = settings.context, like[:0], self.processors, self.capability, holds_fp8(weights)
            off = faulty(build, Case(config, *sizes), off)
        self.operations, self.kernels_off = build(off), off
        if launches and settings.folder and "linear" not in off:
            launches = linear_table.tuned(launches, self.operations, weights, settings.first_mctp_id, settings.folder)
            self.operations = build(off, launches=launches)
        auto = "split" if gpu and "attention" not in off else "rectangle"
        self.attention = auto if settings.attention == "auto" else settings.attention

    def function(self, kind: str, shape: Shape) -> tuple[Fields, Function]:
        """The inputs and the function of an "extend" or a "burst"."""
        return self._extend(shape) if kind == "extend" else self._burst(shape)

    def _shared_fields(self, shape: Shape, commit: int) -> Fields:
        rows, streams = (shape.rows,), (shape.streams,)
        return {
            "slot": (streams, 0),
            "first": (streams, 0),
            "count": (streams, 0),
            "start": (streams, 0),
            "last": (streams, 0),
            "index": (streams, -1),  # token index of the first draw; -1 draws nothing
            "commit": (streams, commit),  # draws that the repetition penalty knows from now on
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

    def _draws(self, inputs: Mapping[str, Tensor]) -> Draws:
        fields = inputs["slot"], inputs["index"], inputs["commit"]
        return Draws(self.table, self.seen, self._banned, self._arrived, *fields)

    def _extend(self, shape: Shape) -> tuple[Fields, Function]:
        fields = self._shared_fields(shape, commit=1)
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
            if not shape.draws:
                return None
            made = inputs["slot"].new_empty(shape.streams, 1)
            self.operations.draw(self.operations.linear(last, self.weights.head), self._draws(inputs), 0, 0, made)
            return made

        return fields, extend

    def _burst(self, shape: Shape) -> tuple[Fields, Function]:
        modules, eps = self.config.mctp_modules, self.config.rms_norm_eps
        fields = self._shared_fields(shape, commit=0)
        fields["ids"] = ((shape.streams, shape.stream_rows + modules), 0)  # tokens from position start + 1 on
        fields["id_at"] = ((shape.rows,), 0)  # where the token of a row is among the ids, for module 0
        fields["id_end"] = ((shape.streams,), 0)  # where the first drawn one goes
        first_id = self.settings.first_mctp_id
        head = part(self.weights.mctp_head, first_id - self.config.vocab_size)

        def burst(inputs: Mapping[str, Tensor]) -> Tensor | None:
            layer, ops = self._layers(shape, inputs), self.operations
            hidden = self.hidden
            hidden_at: Tensor | None = inputs["cache_row"]
            ids, made = inputs["ids"].view(-1), inputs["slot"].new_empty(shape.streams, modules)
            draws = self._draws(inputs)  # streams that draw nothing know their ids: a chunk of a prompt
            for k, module in enumerate(self.weights.modules):
                norms = module.embed_norm, module.hidden_norm, eps
                both = ops.enter(ids, inputs["id_at"], k, self.weights.embedding, hidden, hidden_at, *norms)
                x = layer(self.config.backbone_layers + k, ops.linear(both, module.projection))
                (hidden, last), hidden_at = ops.final_norm(x, self.weights.norm, eps, inputs["last"]), None
                if shape.draws:
                    # Tokens past `commit` only fill the caches; the next burst runs those rows again.
                    logits = ops.linear(last, head)
                    ops.draw(logits, draws, k, first_id, made, ids, inputs["id_end"])
            return made if shape.draws and modules else None

        return fields, burst
