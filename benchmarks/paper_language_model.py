"""Measures the language model for the paper's tables: the engine that serves, and an eager baseline over its weights.

The engine has a server's slots, context and prompt chunk, and programs of the same shapes: what is measured is what
serves, but for the calls around it (`benchmarks.gpu_serving` has those).
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.decode_speed import Speed, end, submit, tokens_per_s
from benchmarks.eager_baseline import EagerLanguageModel
from benchmarks.gpu_device import milliseconds, synchronize
from benchmarks.kernel_profile import profile_call
from benchmarks.paper_setting import FIRST_CHUNK_TOKENS, PROMPT_TOKENS, REPETITION_PENALTY, random_prompts
from benchmarks.roofline import Cost, ModelSize, Peaks, Work, cycle_tokens
from benchmarks.roofline import tokens_per_s as roofline_tokens_per_s
from vita_audio.contract.modes import NAMED_MODES, Mode
from vita_audio.engines.interface import BurstRow, ExtendRow, Sampling
from vita_audio.engines.torch_cuda.cuda_graphs import Program
from vita_audio.engines.torch_cuda.engine import TorchCudaLanguageModel
from vita_audio.engines.torch_cuda.settings import Settings
from vita_audio.engines.torch_cuda.weights import Weights

#: By whether it is the audio-only one.
HEADS = ("full", "audio-only")

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Call:
    """One call of an engine, ready to run: `rows` of each stream; `cost`: what it must do at least."""

    kind: str
    rows: int
    head: str
    streams: int
    cost: Cost
    engine: TorchCudaLanguageModel
    work: Callable[[], object]

    @property
    def name(self) -> str:
        return f"{self.kind}, {self.rows} row(s)"

    def row(self) -> Row:
        return {"call": self.name, "kind": self.kind, "head": self.head, "streams": self.streams}


@dataclass(frozen=True, slots=True)
class Served:
    """What a server's language model is opened with, as far as it decides speed."""

    slots: int
    context: int
    prefill_chunk: int
    folder: Path  # of the engines, where an engine keeps what it measures when it is opened


@dataclass(slots=True)
class LanguageModelBench:
    """One model on one device, in one variant.

    Attributes:
        variant: the name of what is measured: weights' formats and kernels.
        peaks: what the device reached in this run.
        parts: what a forward of `weights` must do at least.
        served: of the engine.
        kernels_off: names of `kernels/operations.py`.
    """

    variant: str
    size: ModelSize
    weights: Weights
    peaks: Peaks
    parts: Work
    served: Served
    kernels_off: frozenset[str] = frozenset()
    _engine: tuple[object, TorchCudaLanguageModel] | None = None

    @property
    def device(self) -> torch.device:
        return self.weights.embedding.device

    def engine(self, audio_head: bool) -> TorchCudaLanguageModel:
        """As a server opens it, but that programs are captured when they are first needed. The last one is kept."""
        if self._engine is None or self._engine[0] != audio_head:
            self._engine = None  # its caches and graphs go before the next one's come
            self._engine = audio_head, self.new_engine(self.served.slots, self.served.context, audio_head)
        return self._engine[1]

    def close(self) -> None:
        """Free the engine's memory, for another variant."""
        self._engine = None
        gc.collect()

    def new_engine(
        self, slots: int, context: int, audio_head: bool, banned: range = range(0)
    ) -> TorchCudaLanguageModel:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        first = self.size.first_audio_id if audio_head else 0
        settings = Settings(
            slots, context, first_mctp_id=first, kernels_off=self.kernels_off, folder=self.served.folder
        )
        return TorchCudaLanguageModel(self.size.config, self.weights, settings, banned)

    def table_5(
        self, modes: Sequence[str], tokens: int, streams: int, audio_head: bool, limit_s: float
    ) -> Iterator[Row]:
        """`tokens_per_s` of each mode; `limit_s` ends a mode early."""
        engine = self.engine(audio_head)
        for mode in modes:
            self._speed(engine, mode, min(tokens, 64), streams, limit_s)  # captures what this mode runs
            speed = self._speed(engine, mode, tokens, streams, limit_s)
            yield self._row(self.variant, mode, streams, audio_head, speed)

    def _speed(self, engine: TorchCudaLanguageModel, mode: str, tokens: int, streams: int, limit_s: float) -> Speed:
        chunk = self.served.prefill_chunk
        return tokens_per_s(engine, mode, tokens, streams, limit_s, chunk, below=self.size.first_audio_id)

    def baseline(self, modes: Sequence[str], tokens: int, limit_s: float) -> Iterator[Row]:
        """The eager loop, batch 1, full head; counted as `tokens_per_s` counts."""
        model = EagerLanguageModel(self.size.config, self.weights)
        prompt = random_prompts(1, self.size.first_audio_id)[0]
        for mode in modes:
            pattern = Mode(mode, NAMED_MODES[mode])
            model.generate(prompt, pattern, min(tokens, 16), REPETITION_PENALTY)
            synchronize(self.device)
            start = time.perf_counter()
            model.generate(prompt, pattern, 1, REPETITION_PENALTY)
            first, start = time.perf_counter() - start, time.perf_counter()
            made = len(model.generate(prompt, pattern, tokens, REPETITION_PENALTY, limit_s)) - 1
            speed = Speed(made, PROMPT_TOKENS + made / 2, made / (time.perf_counter() - start - first))
            yield self._row("eager baseline", mode, 1, False, speed)

    def _row(self, what: str, mode: str, streams: int, audio_head: bool, speed: Speed) -> Row:
        """Speed with what it means: bytes of weights and caches, operations, and their share of the larger bound."""
        calls = self.parts.cycle(mode, streams, speed.context, audio_head)
        cycles = speed.per_s / streams / cycle_tokens(mode)  # of a second
        seconds = {"memory": 0.0, "compute": 0.0}
        for cost, times in calls:
            seconds[self.peaks.bound(cost)] += times * self.peaks.seconds(cost)
        roofline = roofline_tokens_per_s(self.parts, mode, self.peaks, streams, speed.context, audio_head)
        return {
            "implementation": what, "mode": mode, "streams": streams, "head": HEADS[audio_head],
            "tokens": speed.tokens, "tokens_per_s": speed.per_s,
            "achieved_gb_s": cycles * sum(times * cost.moved for cost, times in calls) / 1e9,
            "achieved_tflop_s": cycles * sum(times * cost.operations for cost, times in calls) / 1e12,
            "roofline_tokens_per_s": roofline, "bound": max(seconds, key=seconds.__getitem__),
            "share": speed.per_s / roofline,
        }  # fmt: skip

    def calls(self, streams: int, context: int, most: int | None = None) -> Iterator[Call]:
        """One call after the other, each read by the host: backbone over 1 and K + 1 rows, and bursts of all modules:
        greedy with each head, and sampled with top-k. `most`: only the first so many of them."""
        modules = self.size.config.mctp_modules
        start, deep = context - 2 * modules - 2, modules + 1
        greedy, sampled = Sampling(repetition_penalty=REPETITION_PENALTY), Sampling(1.0, 50, 0.9, REPETITION_PENALTY)
        for kind, rows, audio_head, sampling in (
            ("extend", deep, True, greedy),
            ("burst", deep, True, greedy),
            ("burst, sampled", deep, True, sampled),
            ("extend", 1, True, greedy),
            ("burst", deep, False, greedy),
        )[:most]:
            engine = self.engine(audio_head)
            for slot in range(streams):
                engine.begin(slot, sampling)
                with engine.cached.extend([ExtendRow(slot, 0, [1] * (start + rows), None)]):
                    pass  # counts as read: what the caches hold does not change how long a call takes
            work: Callable[[], object]
            if kind == "extend":
                cost = self.parts.step(streams, rows, start)
                work = partial(engine.extend, [ExtendRow(slot, start, [1] * rows, 0) for slot in range(streams)])
            else:
                cost = self.parts.burst(streams, rows, start, audio_head)
                bursts = [BurstRow(slot, start, start + rows, [1] * rows, 0, 0) for slot in range(streams)]
                work = partial(engine.burst, bursts)
            head = HEADS[audio_head and kind != "extend"]  # the backbone's is always whole
            try:
                yield Call(kind, rows, head, streams, cost, engine, work)
            finally:
                for slot in range(streams):
                    engine.release(slot)

    def steps(self, streams: int, context: int, repeats: int) -> Iterator[Row]:
        """Each of `calls`, timed."""
        for call in self.calls(streams, context):
            took_s, floor_s = milliseconds(call.work, self.device, repeats) / 1e3, self.peaks.seconds(call.cost)
            yield {
                **call.row(), "implementation": self.variant, "ms": took_s * 1e3, "floor_ms": floor_s * 1e3,
                "bound": self.peaks.bound(call.cost), "achieved_gb_s": call.cost.moved / took_s / 1e9,
                "achieved_tflop_s": call.cost.operations / took_s / 1e12, "share": floor_s / took_s,
            }  # fmt: skip

    def step_and_burst(self, context: int, repeats: int) -> Row:
        """ms of one extend after a burst and of one burst, 1 stream: what every kernel is a part of."""
        took = [milliseconds(call.work, self.device, repeats) for call in self.calls(1, context, most=2)]
        return {"extend_ms": took[0], "burst_ms": took[1]}

    @torch.inference_mode()
    def host_shares(self, streams: int, context: int, repeats: int) -> Iterator[Row]:
        """Each of `calls`, taken apart: its program alone on the device, the host's time to launch it, and the host's
        time to write its inputs (and read a result that is there). ms, medians; what is left is waiting."""
        for call in self.calls(streams, context):
            whole = milliseconds(call.work, self.device, repeats)
            program, launch = _program_of(call), []
            for _ in range(repeats):
                synchronize(self.device)
                start = time.perf_counter()
                output = program.launch()
                launch.append((time.perf_counter() - start) * 1e3)
            alone = milliseconds(lambda: [program.launch() for _ in range(10)], self.device, repeats) / 10  # noqa: B023
            # Only this call of the program leaves the device out: inputs are written, its last output is read.
            program.run = lambda: output  # type: ignore[method-assign]  # noqa: B023
            host = milliseconds(call.work, self.device, repeats)
            del program.run  # the class's own
            yield {
                **call.row(), "ms": whole, "device_ms": alone, "launch_ms": median(launch), "host_ms": host,
            }  # fmt: skip

    def profiles(self, streams: int, context: int) -> Iterator[Row]:
        """Each of `calls` but the backbone's single row, kernel by kernel; "table" is the text of it."""
        for call in self.calls(streams, context):
            if call.rows == 1:
                continue
            made = profile_call(call.work, self.device)
            yield {
                **call.row(), "implementation": self.variant, "launches": made.launches,
                "span_ms": made.span_us / 1e3, "busy_ms": made.busy_us / 1e3, "longest_gap_us": made.longest_gap_us,
                "table": made.table(),
            }  # fmt: skip

    def prepare(self, slots: int, audio_head: bool) -> Row:
        """What a server waits for: all programs of `slots` streams. Memory in GiB, as the driver counts it."""
        self.close()
        context, chunk, free = self.served.context, self.served.prefill_chunk, self._free_gib()
        engine = self.new_engine(slots, context, audio_head)
        with_slots, start = self._free_gib(), time.perf_counter()
        programs = engine.prepare(chunk)
        synchronize(self.device)
        _, estimate = engine.settings.memory(self.size.config, self.weights.embedding.element_size())
        return {
            "slots": slots, "context": context, "chunk": chunk, "programs": programs,
            "seconds": time.perf_counter() - start, "slots_gib": free - with_slots,
            "programs_gib": with_slots - self._free_gib(), "estimate_gib": estimate / 2**30,
            "free_gib": self._free_gib(),
        }  # fmt: skip

    def _free_gib(self) -> float:
        """Of the device, without what the allocator only keeps; 0 on a CPU."""
        if self.device.type != "cuda":
            return 0.0
        gc.collect()
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(self.device)[0] / 2**30

    def first_chunk_ms(self, mode: str, audio_head: bool, repeats: int) -> float:
        """From the prompt of 32 tokens to the last token of the first audio chunk, median."""
        engine, times = self.engine(audio_head), []
        for turn in range(2 * repeats):
            scheduler, (stream,) = submit(
                engine, mode, 2 * FIRST_CHUNK_TOKENS, 1, self.served.prefill_chunk, self.size.first_audio_id
            )
            synchronize(self.device)
            start = time.perf_counter()
            while stream.generated < FIRST_CHUNK_TOKENS:
                scheduler.step()
            if turn >= repeats:  # the first half warms up
                times.append((time.perf_counter() - start) * 1e3)
            end(scheduler, [stream])
        return median(times)

    def baseline_first_chunk_ms(self, mode: str, repeats: int) -> float:
        model, prompt = (
            EagerLanguageModel(self.size.config, self.weights),
            random_prompts(1, self.size.first_audio_id)[0],
        )
        pattern = Mode(mode, NAMED_MODES[mode])
        work = partial(model.generate, prompt, pattern, FIRST_CHUNK_TOKENS, REPETITION_PENALTY)
        return milliseconds(work, self.device, repeats)

    def head_agreement(self, mode: str, bursts: int, text_banned: bool) -> Row:
        """Burst by burst on equal states: what the audio-only head says against what the full head says.

        `text_banned`: neither may say ids below the audio-only head's, so that only rounding can part them. Otherwise
        the full head is free. Of a burst, tokens up to the first difference are compared.
        """
        modules, (backbone, _) = self.size.config.mctp_modules, NAMED_MODES[mode][-2:]
        banned = range(self.size.first_audio_id) if text_banned else range(0)
        context = min(self.size.config.max_position_embeddings, PROMPT_TOKENS + bursts * (modules + backbone) + 1)
        self.close()
        full, sliced = (self.new_engine(1, context, audio_head, banned) for audio_head in (False, True))
        compared = equal = cascaded = consumed = 0
        tokens = list(random_prompts(1, self.size.first_audio_id)[0])
        for engine in (full, sliced):
            engine.begin(0, Sampling(repetition_penalty=REPETITION_PENALTY))
        for _ in range(bursts):
            for _ in range(backbone):
                row = ExtendRow(0, consumed, tokens[consumed:], 0)
                (made,), _ = full.extend([row]), sliced.extend([row])
                assert made is not None
                consumed = len(tokens)
                tokens.append(made)
            burst = BurstRow(0, cascaded, consumed, tokens[cascaded + 1 :], modules, 0)
            (wanted,), (got,) = full.burst([burst]), sliced.burst([burst])
            same = next((i for i, (a, b) in enumerate(zip(wanted, got, strict=True)) if a != b), modules)
            compared, equal = compared + min(same + 1, modules), equal + same
            known = tokens[cascaded + 1 :] + wanted[:-1]
            tokens += wanted
            if same < modules:  # put the audio-only engine where the full one is: ids seen, then caches
                sliced.release(0)
                sliced.begin(0, Sampling(repetition_penalty=REPETITION_PENALTY))
                sliced.extend([ExtendRow(0, 0, tokens[:consumed], None)])
                sliced.burst([BurstRow(0, cascaded, consumed, known, 0, None)])
            cascaded = consumed
        return {
            "mode": mode, "full_head": "audio ids only" if text_banned else "free", "bursts": bursts,
            "tokens_compared": compared, "tokens_equal": equal, "share": equal / compared,
        }  # fmt: skip


def _program_of(call: Call) -> Program:
    """The program that a call of an engine runs."""
    ran: list[Program] = []

    def noted(program: Program, run: Callable[[], object]) -> object:
        ran.append(program)
        return run()

    programs = call.engine.programs.values()
    for program in programs:
        program.run = partial(noted, program, program.run)  # type: ignore[method-assign, assignment]
    call.work()
    for program in programs:
        del program.run
    return ran[-1]
