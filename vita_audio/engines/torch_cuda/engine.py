"""`LanguageModelEngine` with preallocated slots and a program per call shape: the GPU engine that needs no build step.

Calls are padded to a few shapes (`Shape`): on a CUDA device each shape is captured once as a CUDA graph, on a CPU the
same functions run eagerly. A burst is one program: all modules, head and sampling, no return to the host in between.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import chain
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from vita_audio.checkpoint.configs import LanguageModelConfig
from vita_audio.contract.errors import EngineError
from vita_audio.engines.interface import BurstRow, ExtendRow, Sampling
from vita_audio.engines.sampling import DrawnAhead
from vita_audio.engines.torch_cuda import network
from vita_audio.engines.torch_cuda.memory import check_memory, slot_bytes
from vita_audio.engines.torch_cuda.network import Attend, Spans, rms_norm
from vita_audio.engines.torch_cuda.program import Capturer, Fields, Function, Program
from vita_audio.engines.torch_cuda.sampler import NARROW, SamplingTable, candidates, draw
from vita_audio.engines.torch_cuda.shapes import (
    GROUP_STREAMS,
    Limits,
    Shape,
    group_streams,
    power_of_two,
    prepared_shapes,
    round_rows,
    round_stream_rows,
)
from vita_audio.engines.torch_cuda.weights import Weights

#: Rows of one stream that a program takes at most; longer runs are cut.
MAX_STREAM_ROWS = 512
_GROUP_ROWS = 64
_MIN_SPAN = 256
_UNIFORM_STEP = 2.0**-24  # uniform draws are multiples of this: they travel as integers


@dataclass(frozen=True, slots=True)
class Settings:
    """How an engine runs.

    Attributes:
        slots: streams that may be open at once.
        context: tokens a slot holds.
        first_mctp_id: MCTP modules emit ids from here on only (the audio-only head); 0 is the full head.
        attention: "split" is the GPU kernel of `split_attention.py`, "rectangle" is PyTorch's own; "auto" takes the
            first on a CUDA device where the GPU language Triton is installed.
        capture: CUDA graphs on a CUDA device; no meaning elsewhere.
        compile: fuse the pointwise parts of a layer with torch.compile.
    """

    slots: int
    context: int
    first_mctp_id: int = 0
    attention: Literal["auto", "rectangle", "split"] = "auto"
    capture: bool = True
    compile: bool = False


class TorchCudaLanguageModel:
    """Backbone and MCTP over `Weights`, on the weights' device and in their type.

    Args:
        config: sizes.
        weights: see `load_weights`.
        settings: slots, context and options.
        banned_ids: token ids that must never be sampled.

    Raises:
        EngineError: a setting is out of range, or the slots do not fit the GPU's free memory (says how many do).
    """

    def __init__(
        self, config: LanguageModelConfig, weights: Weights, settings: Settings, banned_ids: Sequence[int] = ()
    ) -> None:
        _check_settings(config, weights, settings)
        self.config, self.settings = config, settings
        self.slots, self.context = settings.slots, settings.context
        self.mctp_modules, self.vocab_size = config.mctp_modules, config.vocab_size
        self._weights, self._device = weights, weights.embedding.device
        self._rotary = network.rotary_tables(self.context, config.head_dim, config.rope_theta, self._device)
        # One row (and one slot) more than streams own: padding reads and writes there.
        self._no_row, self._no_slot = self.slots * self.context, self.slots
        like = weights.embedding
        kv = (2, config.num_key_value_heads, config.head_dim)
        self._cache = like.new_zeros(config.num_hidden_layers, self._no_row + 1, *kv)
        self._hidden = like.new_zeros(self._no_row + 1, config.hidden_size)  # H0 of each position
        self._seen = torch.zeros(self.slots + 1, self.vocab_size, dtype=torch.bool, device=self._device)
        self._table = SamplingTable.create(self.slots, self._device)
        self._banned = torch.zeros(self.vocab_size, dtype=torch.bool, device=self._device)
        self._banned[list(banned_ids)] = True
        self._sampling = [Sampling() for _ in range(self.slots)]
        self._draws = [DrawnAhead(0) for _ in range(self.slots)]
        self._project, self._finish = network.project, network.finish
        if settings.compile:
            self._project = torch.compile(network.project, fullgraph=True)
            self._finish = torch.compile(network.finish, fullgraph=True)
        self._programs: dict[tuple[str, Shape], Program] = {}
        self._prepared = False
        self._group_rows = _GROUP_ROWS  # rows of prompts that share a call; `prepare` sets it to the prefill chunk
        on_gpu = self._device.type == "cuda"
        self._capturer = Capturer(self._device) if on_gpu and settings.capture else None
        gpu = torch.cuda.get_device_properties(self._device) if on_gpu else None
        self._processors = gpu.multi_processor_count if gpu else 1
        self._capability = 10 * gpu.major + gpu.minor if gpu else 90
        auto = "split" if on_gpu and find_spec("triton") else "rectangle"
        self.attention = auto if settings.attention == "auto" else settings.attention

    @property
    def programs(self) -> Mapping[tuple[str, Shape], Program]:
        """("extend" or "burst", shape) -> program, of all that were made so far."""
        return self._programs

    @property
    def limits(self) -> Limits:
        """What decides which shapes there are."""
        span = min(self.context, _MIN_SPAN) if self.attention == "rectangle" else self.context
        return Limits(self.slots, self.mctp_modules, span, (1, min(NARROW, self.vocab_size)))

    @torch.inference_mode()
    def prepare(self, prefill_chunk: int = 64) -> int:
        """Make the programs that streams usually run (`prepared_shapes`); returns how many there are.

        From then on nothing is captured any more: a call of another shape (a top-k beyond NARROW, say) runs eagerly,
        some milliseconds slower, instead of holding up every stream for a capture. Where attention is the rectangle,
        shapes grow with the streams, and are still captured as they come.
        """
        self._group_rows = prefill_chunk
        for kind, shape in prepared_shapes(self.limits, prefill_chunk):
            self._program(kind, shape)
        self._prepared = self.attention == "split"
        return len(self._programs)

    @torch.inference_mode()
    def open(self, slot: int, sampling: Sampling) -> None:
        self._seen[slot] = False
        self._sampling[slot], self._draws[slot] = sampling, DrawnAhead(sampling.seed)
        self._table.put(slot, sampling, self.vocab_size)

    def release(self, slot: int) -> None:
        pass  # the next stream of the slot overwrites its cache

    @torch.inference_mode()
    def extend(self, rows: Sequence[ExtendRow]) -> list[int | None]:
        made: list[int | None] = [None] * len(rows)
        for kind, group in self._calls([len(row.tokens) for row in rows], self.limits.extend_rows):
            if kind == "long":
                made[group[0]] = self._extend_long(rows[group[0]])
            else:
                for i, token in zip(group, self._extend([rows[i] for i in group], kind == "group"), strict=True):
                    made[i] = token
        return made

    def _calls(self, counts: Sequence[int], most: int) -> Iterator[tuple[Literal["step", "group", "long"], list[int]]]:
        """How the streams of a phase share calls, by their rows. A decode step has at most `most` rows of a stream;
        prompts have more, and share a call while they fit a prefill chunk."""
        steps = [i for i, count in enumerate(counts) if count <= most]
        if steps:
            yield "step", steps
        groups: list[list[int]] = []
        filled = self._group_rows
        for i, count in enumerate(counts):
            if count <= most:
                continue
            if filled + count > self._group_rows or len(groups[-1]) == GROUP_STREAMS:
                groups.append([])
                filled = 0
            groups[-1].append(i)
            filled += count
        for group in groups:
            yield ("group" if len(group) > 1 else "long"), group

    def _extend_long(self, row: ExtendRow) -> int | None:
        """More rows than a decode step: a prefill chunk, alone."""
        while len(row.tokens) > MAX_STREAM_ROWS:
            self._extend([replace(row, tokens=row.tokens[:MAX_STREAM_ROWS], index=None)])
            row = replace(row, start=row.start + MAX_STREAM_ROWS, tokens=row.tokens[MAX_STREAM_ROWS:])
        return self._extend([row])[0]

    def _extend(self, rows: Sequence[ExtendRow], group: bool = False) -> list[int | None]:
        spans = np.array([(row.slot, row.start, row.start + len(row.tokens)) for row in rows])
        index = [row.index for row in rows]
        shape = self._shape(spans, index, least_rows=1, group=group)
        program = self._program("extend", shape)
        program.reset()
        stream, _ = self._fill(program, shape, spans, index, draws=1)
        tokens = np.fromiter(chain.from_iterable(row.tokens for row in rows), np.int64, len(stream))
        program.inputs["tokens"][: len(tokens)] = tokens
        program.inputs["seen_at"][: len(tokens)] = spans[stream, 0] * self.vocab_size + tokens
        output = program.run()
        if output is None:
            return [None] * len(rows)
        return [None if i is None else token for i, token in zip(index, output[:, 0].tolist(), strict=False)]

    @torch.inference_mode()
    def burst(self, rows: Sequence[BurstRow]) -> list[list[int]]:
        if not self.mctp_modules:
            raise EngineError("burst: this checkpoint has no MCTP modules (K = 0)")
        made: list[list[int]] = [[] for _ in rows]
        for kind, group in self._calls([row.stop - row.start for row in rows], self.limits.burst_rows):
            if kind == "long":
                made[group[0]] = self._burst_long(rows[group[0]])
            else:
                for i, tokens in zip(group, self._burst([rows[i] for i in group], kind == "group"), strict=True):
                    made[i] = tokens
        return made

    def _burst_long(self, row: BurstRow) -> list[int]:
        """More rows than a decode step: the cascade over a prompt, alone; all but its last rows read known tokens."""
        ahead = self.mctp_modules - 1  # tokens a chunk must know beyond one for each of its rows
        while row.stop - row.start > MAX_STREAM_ROWS:
            count = min(MAX_STREAM_ROWS, len(row.tokens) - ahead)
            stop = row.start + count
            self._burst([replace(row, stop=stop, tokens=row.tokens[: count + ahead], index=None)])
            row = replace(row, start=stop, tokens=row.tokens[count:])
        return self._burst([row])[0]

    def _burst(self, rows: Sequence[BurstRow], group: bool = False) -> list[list[int]]:
        modules = self.mctp_modules
        spans = np.array([(row.slot, row.start, row.stop) for row in rows])
        index = [row.index for row in rows]
        shape = self._shape(spans, index, least_rows=2, group=group)  # only a prompt of one token has 1
        program = self._program("burst", shape)
        program.reset()
        stream, within = self._fill(program, shape, spans, index, draws=modules)
        inputs, wide, number = program.inputs, shape.stream_rows + modules, np.arange(len(rows))
        for i, row in enumerate(rows):
            inputs["ids"][i, : len(row.tokens)] = row.tokens
        inputs["id_at"][: len(stream)] = stream * wide + within
        inputs["id_end"][: len(rows)] = number * wide + spans[:, 2] - spans[:, 1]
        inputs["commit"][: len(rows)] = [0 if row.index is None else row.commit for row in rows]
        output = program.run()
        if output is None:
            return [[] for _ in rows]
        sampled = output.tolist()
        return [[] if row.index is None else sampled[i][: row.commit] for i, row in enumerate(rows)]

    def _shape(self, spans: NDArray[np.int64], index: Sequence[int | None], least_rows: int, group: bool) -> Shape:
        """The smallest shape that holds a call; spans [streams, 3] are (slot, start, stop). `group`: of prompts."""
        counts = spans[:, 2] - spans[:, 1]
        drawn = [slot for slot, i in zip(spans[:, 0], index, strict=True) if i is not None]
        wanted = [candidates(self._sampling[slot], self.vocab_size) for slot in drawn]
        span = max(_MIN_SPAN, power_of_two(int(spans[:, 2].max())))
        return Shape(
            rows=round_rows(max(least_rows, int(counts.sum()))),
            streams=group_streams(self.slots) if group else min(self.slots, power_of_two(len(spans))),
            stream_rows=round_stream_rows(self._group_rows if group else max(least_rows, int(counts.max()))),
            span=min(self.context, span) if self.attention == "rectangle" else self.context,
            # Several streams that draw nothing (ends of prompts) run as greedy ones do; their draws are not read.
            width=max(wanted, default=int(len(spans) > 1)),
        )

    def _fill(
        self, program: Program, shape: Shape, spans: NDArray[np.int64], index: Sequence[int | None], draws: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The inputs that extend and burst share; returns the stream and the place in it of every packed row."""
        inputs, streams = program.inputs, len(spans)
        slot, start, counts = spans[:, 0], spans[:, 1], spans[:, 2] - spans[:, 1]
        first = counts.cumsum() - counts
        stream = np.repeat(np.arange(streams), counts)
        within = np.arange(len(stream)) - first[stream]
        position = start[stream] + within
        for name, values in (("slot", slot), ("first", first), ("count", counts), ("start", start)):
            inputs[name][:streams] = values
        inputs["last"][:streams] = first + counts - 1
        inputs["place"][: len(stream)] = stream * shape.stream_rows + within
        inputs["position"][: len(stream)] = position
        inputs["cache_row"][: len(stream)] = slot[stream] * self.context + position
        for i, sampled in enumerate(index):
            if sampled is None:
                continue
            sampling = self._sampling[slot[i]]
            inputs["seen_slot"][i] = slot[i]
            if not sampling.greedy:
                inputs["uniform"][i] = self._draws[slot[i]].take(sampled, draws) / _UNIFORM_STEP
        return stream, within

    def _program(self, kind: str, shape: Shape) -> Program:
        program = self._programs.get((kind, shape))
        if program is None:
            fields, function = self._extend_function(shape) if kind == "extend" else self._burst_function(shape)
            program = Program(fields, function, self._device, None if self._prepared else self._capturer)
            self._programs[kind, shape] = program
        return program

    def _shared_fields(self, shape: Shape, draws: int) -> Fields:
        rows, streams = (shape.rows,), (shape.streams,)
        return {
            "slot": (streams, 0),
            "first": (streams, 0),
            "count": (streams, 0),
            "start": (streams, 0),
            "last": (streams, 0),
            "seen_slot": (streams, self._no_slot),  # where a sampled id is noted
            "uniform": ((shape.streams, draws), 0),
            "place": (rows, shape.streams * shape.stream_rows),
            "position": (rows, 0),
            "cache_row": (rows, self._no_row),
        }

    def _attend(self, shape: Shape, inputs: Mapping[str, Tensor]) -> Attend:
        spans = Spans(*(inputs[name] for name in Spans.__slots__))
        if self.attention == "rectangle":
            config = self.config
            group = config.num_attention_heads // config.num_key_value_heads
            return network.attend_rectangle(shape, spans, self.slots, group)
        from vita_audio.engines.torch_cuda.split_attention import attend_split  # Triton is not on CPU machines

        return attend_split(shape, spans, self.context, self._processors, self._capability)

    def _layer(self, index: int, x: Tensor, inputs: Mapping[str, Tensor], rotary: Tensor, attend: Attend) -> Tensor:
        backbone = len(self._weights.layers)
        w = self._weights.layers[index] if index < backbone else self._weights.modules[index - backbone].layer
        cache, eps = self._cache[index], self.config.rms_norm_eps
        q, kv = self._project(x, w, rotary, self.config.head_dim, eps)
        cache.index_copy_(0, inputs["cache_row"], kv)
        return self._finish(x, attend(q, cache), w, eps)

    def _sample(
        self, hidden: Tensor, inputs: Mapping[str, Tensor], table: SamplingTable, width: int, number: int, first_id: int
    ) -> Tensor:
        """Draw `number` of a call from the last rows: hidden [rows, hidden] -> ids [streams]."""
        last = hidden.index_select(0, inputs["last"])
        logits = F.linear(last, self._weights.head[first_id:]).float()  # [streams, ids]
        seen = self._seen[:, first_id:].index_select(0, inputs["slot"])
        uniform = inputs["uniform"][:, number : number + 1] * _UNIFORM_STEP
        return first_id + draw(logits, seen, self._banned[first_id:], table, uniform, width)

    def _note(self, slot: Tensor, tokens: Tensor) -> None:
        self._seen.view(-1).index_fill_(0, slot * self.vocab_size + tokens, True)

    def _extend_function(self, shape: Shape) -> tuple[Fields, Function]:
        fields = self._shared_fields(shape, draws=1)
        fields["tokens"] = ((shape.rows,), 0)
        fields["seen_at"] = ((shape.rows,), self._no_slot * self.vocab_size)

        def extend(inputs: Mapping[str, Tensor]) -> Tensor | None:
            self._seen.view(-1).index_fill_(0, inputs["seen_at"], True)
            attend = self._attend(shape, inputs)
            rotary = self._rotary.index_select(0, inputs["position"])
            x = F.embedding(inputs["tokens"], self._weights.embedding)
            for index in range(self.config.backbone_layers):
                x = self._layer(index, x, inputs, rotary, attend)
            hidden = rms_norm(x, self._weights.norm, self.config.rms_norm_eps)
            self._hidden.index_copy_(0, inputs["cache_row"], hidden)
            if not shape.width:
                return None
            table = self._table.rows(inputs["slot"])
            tokens = self._sample(hidden, inputs, table, shape.width, 0, 0)
            self._note(inputs["seen_slot"], tokens)
            return tokens[:, None]

        return fields, extend

    def _burst_function(self, shape: Shape) -> tuple[Fields, Function]:
        modules, eps = self.mctp_modules, self.config.rms_norm_eps
        fields = self._shared_fields(shape, draws=modules)
        fields["ids"] = ((shape.streams, shape.stream_rows + modules), 0)  # tokens from position start + 1 on
        fields["id_at"] = ((shape.rows,), 0)  # where the token of a row is among the ids, for module 0
        fields["id_end"] = ((shape.streams,), 0)  # where the first sampled one goes
        fields["commit"] = ((shape.streams,), 0)

        def burst(inputs: Mapping[str, Tensor]) -> Tensor | None:
            attend = self._attend(shape, inputs)
            rotary = self._rotary.index_select(0, inputs["position"])
            table = self._table.rows(inputs["slot"])
            hidden = self._hidden.index_select(0, inputs["cache_row"])
            ids, sampled = inputs["ids"].flatten(), []
            drawn = inputs["seen_slot"] != self._no_slot  # the others know their ids: a chunk of a prompt
            for k, module in enumerate(self._weights.modules):
                tokens = ids.index_select(0, inputs["id_at"] + k)
                x = network.enter(F.embedding(tokens, self._weights.embedding), hidden, module, eps)
                x = self._layer(self.config.backbone_layers + k, x, inputs, rotary, attend)
                hidden = rms_norm(x, self._weights.norm, eps)
                if not shape.width:
                    continue
                made = self._sample(hidden, inputs, table, shape.width, k, self.settings.first_mctp_id)
                place = inputs["id_end"] + k
                ids = ids.index_copy(0, place, torch.where(drawn, made, ids.index_select(0, place)))
                # Tokens past `commit` only fill the caches; the next burst runs those rows again.
                self._note(torch.where(k < inputs["commit"], inputs["seen_slot"], self._no_slot), made)
                sampled.append(made)
            return torch.stack(sampled, dim=1) if sampled else None

        return fields, burst


def _check_settings(config: LanguageModelConfig, weights: Weights, settings: Settings) -> None:
    if settings.slots < 1:
        raise EngineError(f"slots is {settings.slots}, must be at least 1")
    if not 1 <= settings.context <= config.max_position_embeddings:
        raise EngineError(
            f"context is {settings.context}, must be 1..{config.max_position_embeddings} (max_position_embeddings)"
        )
    if not 0 <= settings.first_mctp_id < config.vocab_size:
        raise EngineError(f"first_mctp_id is {settings.first_mctp_id}, must be 0..{config.vocab_size - 1}")
    if weights.embedding.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(weights.embedding.device)
        each = slot_bytes(config, settings.context, weights.embedding.element_size())
        check_memory(settings.slots, settings.context, each, free)
