"""`LanguageModelEngine` with preallocated slots and a program per call shape: the GPU engine that needs no build step.

Calls are padded to a few shapes (`Shape`): on a CUDA device each shape is captured once as a CUDA graph, on a CPU the
same functions run eagerly. Here rows are grouped into calls and written into the inputs of programs; `forward.py` holds
what a program computes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from vita_audio.checkpoint.configs import LanguageModelConfig
from vita_audio.engines.cached_tokens import SlotEngine
from vita_audio.engines.interface import BurstRow, ExtendRow, Sampling
from vita_audio.engines.torch.prompt_rows import PromptRows
from vita_audio.engines.torch_cuda.cuda_graphs import Capturer, Program
from vita_audio.engines.torch_cuda.forward import Forward
from vita_audio.engines.torch_cuda.memory import capture_error, is_out_of_memory
from vita_audio.engines.torch_cuda.settings import Settings
from vita_audio.engines.torch_cuda.shapes import (
    GROUP_STREAMS,
    MAX_STREAM_ROWS,
    Limits,
    Shape,
    group_streams,
    power_of_two,
    prepared_shapes,
    round_rows,
    round_stream_rows,
)
from vita_audio.engines.torch_cuda.weights import Weights

_GROUP_ROWS = 64
_MIN_SPAN = 256


class TorchCudaLanguageModel(SlotEngine):
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
        settings.check(config, weights)
        self._prompt_rows = PromptRows(weights.embedding[config.vocab_size :])
        embedded_size = config.hidden_size if len(self._prompt_rows.table) else 0
        super().__init__(settings.slots, settings.context, config.mctp_modules, config.vocab_size, embedded_size)
        self.config, self.settings = config, settings
        self.forward = Forward(config, weights, settings, banned_ids)
        self._programs: dict[tuple[str, Shape], Program] = {}
        self._prepared = False
        self._group_rows = _GROUP_ROWS  # rows of prompts that share a call; `prepare` sets it to the prefill chunk
        device = self.forward.device
        self._capturer = Capturer(device) if device.type == "cuda" and settings.capture else None

    @property
    def programs(self) -> Mapping[tuple[str, Shape], Program]:
        """("extend" or "burst", shape) -> program, of all that were made so far."""
        return self._programs

    @property
    def limits(self) -> Limits:
        """What decides which shapes there are."""
        span = min(self.context, _MIN_SPAN) if self.forward.attention == "rectangle" else self.context
        return Limits(self.slots, self.mctp_modules, span)

    @torch.inference_mode()
    def prepare(self, prefill_chunk: int = 64) -> int:
        """Make the programs that streams usually run (`prepared_shapes`); returns how many there are.

        From then on nothing is captured any more: a call of another shape (prompts read by longer chunks) runs eagerly,
        some milliseconds slower, instead of holding up every stream for a capture. Where attention is the rectangle,
        shapes grow with the streams, and are still captured as they come.

        Raises:
            EngineError: the GPU's memory does not hold them (says how many slots fit).
        """
        self._group_rows = prefill_chunk
        free, shapes = self._free_bytes(), prepared_shapes(self.limits, prefill_chunk)
        try:
            for kind, shape in shapes:
                self._program(kind, shape)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            each, programs = self.settings.memory(self.config, self.forward.hidden.element_size())
            number = len(self._programs) + 1
            raise capture_error(self.slots, self.context, each, programs, free, number, len(shapes)) from error
        self._prepared = self.forward.attention == "split"
        return len(self._programs)

    def _free_bytes(self) -> int:
        """Of the GPU now; 0 on a CPU."""
        device = self.forward.device
        return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0

    @torch.inference_mode()
    def _begin(self, slot: int, sampling: Sampling, kept: Sequence[int]) -> None:
        seen = self.forward.seen[slot].fill_(False)
        if kept:
            seen.index_fill_(0, torch.tensor(kept, device=seen.device), True)
        self.forward.table.put(slot, sampling, self.vocab_size)

    @torch.inference_mode()
    def _extend(self, rows: Sequence[ExtendRow]) -> list[int | None]:
        made: list[int | None] = [None] * len(rows)
        for kind, group in self._calls([len(row.tokens) for row in rows], self.limits.extend_rows):
            if kind == "long":
                made[group[0]] = self._extend_long(rows[group[0]])
            else:
                for i, token in zip(group, self._extend_call([rows[i] for i in group], kind == "group"), strict=True):
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
        most = MAX_STREAM_ROWS
        while (count := len(row.tokens)) > most:
            first, rest = (row.embedded and row.embedded.part(*span) for span in ((0, most), (most, count)))
            self._extend_call([replace(row, tokens=row.tokens[:most], index=None, embedded=first)])
            row = replace(row, start=row.start + most, tokens=row.tokens[most:], embedded=rest)
        return self._extend_call([row])[0]

    def _extend_call(self, rows: Sequence[ExtendRow], group: bool = False) -> list[int | None]:
        spans = np.array([(row.slot, row.start, row.start + len(row.tokens)) for row in rows])
        index = [row.index for row in rows]
        shape = self._shape(spans, index, least_rows=1, group=group)
        program = self._program("extend", shape)
        program.reset()
        stream, _ = self._fill(program, shape, spans, index)
        tokens = np.fromiter(chain.from_iterable(row.tokens for row in rows), np.int64, len(stream))
        program.inputs["seen_at"][: len(tokens)] = spans[stream, 0] * self.vocab_size + tokens
        if embedded := [(i, row.embedded) for i, row in enumerate(rows) if row.embedded]:
            places = np.concatenate([np.searchsorted(stream, i) + one.places for i, one in embedded])
            tokens[places] = self.vocab_size + np.arange(len(places))
            self._prompt_rows.put([one.rows for _, one in embedded])
        program.inputs["tokens"][: len(tokens)] = tokens
        output = program.run()
        if output is None:
            return [None] * len(rows)
        return [None if i is None else token for i, token in zip(index, output[:, 0].tolist(), strict=False)]

    @torch.inference_mode()
    def _burst(self, rows: Sequence[BurstRow]) -> list[list[int]]:
        made: list[list[int]] = [[] for _ in rows]
        for kind, group in self._calls([row.stop - row.start for row in rows], self.limits.burst_rows):
            if kind == "long":
                made[group[0]] = self._burst_long(rows[group[0]])
            else:
                for i, tokens in zip(group, self._burst_call([rows[i] for i in group], kind == "group"), strict=True):
                    made[i] = tokens
        return made

    def _burst_long(self, row: BurstRow) -> list[int]:
        """More rows than a decode step: the cascade over a prompt, alone; all but its last rows read known tokens."""
        ahead = self.mctp_modules - 1  # tokens a chunk must know beyond one for each of its rows
        while row.stop - row.start > MAX_STREAM_ROWS:
            count = min(MAX_STREAM_ROWS, len(row.tokens) - ahead)
            stop = row.start + count
            self._burst_call([replace(row, stop=stop, tokens=row.tokens[: count + ahead], index=None)])
            row = replace(row, start=stop, tokens=row.tokens[count:])
        return self._burst_call([row])[0]

    def _burst_call(self, rows: Sequence[BurstRow], group: bool = False) -> list[list[int]]:
        modules = self.mctp_modules
        spans = np.array([(row.slot, row.start, row.stop) for row in rows])
        index = [row.index for row in rows]
        shape = self._shape(spans, index, least_rows=2, group=group)  # only a prompt of one token has 1
        program = self._program("burst", shape)
        program.reset()
        stream, within = self._fill(program, shape, spans, index)
        inputs, wide, number = program.inputs, shape.stream_rows + modules, np.arange(len(rows))
        for i, row in enumerate(rows):
            inputs["ids"][i, : len(row.tokens)] = row.tokens
        inputs["id_at"][: len(stream)] = stream * wide + within
        inputs["id_end"][: len(rows)] = number * wide + spans[:, 2] - spans[:, 1]
        inputs["commit"][: len(rows)] = [row.commit for row in rows]
        output = program.run()
        if output is None:
            return [[] for _ in rows]
        sampled = output.tolist()
        return [[] if row.index is None else sampled[i][: row.commit] for i, row in enumerate(rows)]

    def _shape(self, spans: NDArray[np.int64], index: Sequence[int | None], least_rows: int, group: bool) -> Shape:
        """The smallest shape that holds a call; spans [streams, 3] are (slot, start, stop). `group`: of prompts."""
        counts = spans[:, 2] - spans[:, 1]
        span = max(_MIN_SPAN, power_of_two(int(spans[:, 2].max())))
        return Shape(
            rows=round_rows(max(least_rows, int(counts.sum()))),
            streams=group_streams(self.slots) if group else min(self.slots, power_of_two(len(spans))),
            stream_rows=round_stream_rows(self._group_rows if group else max(least_rows, int(counts.max()))),
            span=min(self.context, span) if self.forward.attention == "rectangle" else self.context,
            # Several streams that draw nothing (ends of prompts) run as those that do: a program less for each shape.
            draws=len(spans) > 1 or index[0] is not None,
        )

    def _fill(
        self, program: Program, shape: Shape, spans: NDArray[np.int64], index: Sequence[int | None]
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
        inputs["index"][:streams] = [-1 if first_draw is None else first_draw for first_draw in index]
        return stream, within

    def _program(self, kind: str, shape: Shape) -> Program:
        program = self._programs.get((kind, shape))
        if program is None:
            capturer = None if self._prepared else self._capturer
            program = Program(*self.forward.function(kind, shape), self.forward.device, capturer)
            self._programs[kind, shape] = program
        return program
