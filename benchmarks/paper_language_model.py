"""Measures the language model for the paper's tables: engine and eager baseline over the same random weights."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.eager_baseline import EagerLanguageModel
from benchmarks.gpu_device import milliseconds, synchronize
from benchmarks.kernel_profile import profile_call
from benchmarks.paper_setting import (
    FIRST_CHUNK_TOKENS,
    PROMPT_TOKENS,
    REPETITION_PENALTY,
    greedy_request,
    random_prompts,
)
from benchmarks.roofline import ModelSize, bytes_per_cycle, tokens_per_s, traffic
from vita_audio.contract.modes import NAMED_MODES, Mode
from vita_audio.engines.interface import BurstRow, ExtendRow, Sampling
from vita_audio.engines.torch_cuda.engine import TorchCudaLanguageModel
from vita_audio.engines.torch_cuda.settings import Settings
from vita_audio.engines.torch_cuda.weights import Weights, load_weights
from vita_audio.generation.scheduler import Scheduler
from vita_audio.generation.stream import Stream

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Call:
    """One call of an engine, ready to run: `rows` of each stream; `moved` bytes at least."""

    kind: str
    rows: int
    head: str
    streams: int
    moved: float
    engine: TorchCudaLanguageModel
    work: Callable[[], object]

    @property
    def name(self) -> str:
        return f"{self.kind}, {self.rows} row(s)"


@dataclass(frozen=True, slots=True)
class LanguageModelBench:
    """One model on one device. `bandwidth` in bytes/s is what a copy reached in this run."""

    size: ModelSize
    weights: Weights
    bandwidth: float
    kernels_off: frozenset[str]

    @classmethod
    def create(
        cls,
        size: ModelSize,
        tensors: Mapping[str, Tensor],
        device: torch.device,
        bandwidth: float,
        kernels_off: frozenset[str],
    ) -> LanguageModelBench:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        return cls(size, load_weights(size.config, tensors, device, dtype), bandwidth, kernels_off)

    @property
    def device(self) -> torch.device:
        return self.weights.embedding.device

    def engine(self, slots: int, context: int, audio_head: bool, banned: range = range(0)) -> TorchCudaLanguageModel:
        gc.collect()  # the last engine's caches and graphs
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        first = self.size.first_audio_id if audio_head else 0
        settings = Settings(slots, context, first_mctp_id=first, kernels_off=self.kernels_off)
        return TorchCudaLanguageModel(self.size.config, self.weights, settings, banned)

    def table_5(
        self, modes: Sequence[str], tokens: int, streams: int, audio_head: bool, limit_s: float
    ) -> Iterator[Row]:
        """Tokens/s of all streams together in each mode, after their first token; `limit_s` ends a mode early."""
        engine = self.engine(streams, PROMPT_TOKENS + tokens + _head_start(streams) + 1, audio_head)
        for mode in modes:
            _run(engine, mode, min(tokens, 64), streams, limit_s)  # captures what this mode runs
            made, context, speed = _run(engine, mode, tokens, streams, limit_s)
            yield self._row("engine", mode, made, streams, audio_head, context, speed)

    def baseline(self, modes: Sequence[str], tokens: int, limit_s: float) -> Iterator[Row]:
        """The eager loop, batch 1, full head."""
        model = EagerLanguageModel(self.size.config, self.weights)
        prompt = random_prompts(1, self.size.first_audio_id)[0]
        for mode in modes:
            pattern = Mode(mode, NAMED_MODES[mode])
            model.generate(prompt, pattern, min(tokens, 16), REPETITION_PENALTY)
            synchronize(self.device)
            start = time.perf_counter()
            made = len(model.generate(prompt, pattern, tokens, REPETITION_PENALTY, limit_s))
            speed = made / (time.perf_counter() - start)
            yield self._row("eager baseline", mode, made, 1, False, PROMPT_TOKENS + made / 2, speed)

    def _row(
        self, what: str, mode: str, tokens: int, streams: int, audio_head: bool, context: float, speed: float
    ) -> Row:
        """Speed with the bytes it means: weights, and caches of `context` tokens on average."""
        parts = traffic(self.size, self.weights.embedding.element_size())
        moved, made = bytes_per_cycle(parts, mode, streams, context, audio_head)
        roofline = tokens_per_s(parts, mode, self.bandwidth, streams, context, audio_head)
        return {
            "implementation": what, "mode": mode, "streams": streams, "head": "audio-only" if audio_head else "full",
            "tokens": tokens, "tokens_per_s": speed, "achieved_gb_s": speed / streams / made * moved / 1e9,
            "roofline_tokens_per_s": roofline, "share": speed / roofline,
        }  # fmt: skip

    def calls(self, streams: int, context: int) -> Iterator[Call]:
        """One call after the other, each read by the host: backbone over 1 and K + 1 rows, and bursts of all modules:
        greedy with each head, and sampled with top-k."""
        modules = self.size.config.mctp_modules
        parts = traffic(self.size, self.weights.embedding.element_size())
        start, deep = context - 2 * modules - 2, modules + 1
        greedy, sampled = Sampling(repetition_penalty=REPETITION_PENALTY), Sampling(1.0, 50, 0.9, REPETITION_PENALTY)
        for kind, rows, audio_head, sampling in (
            ("extend", 1, False, greedy),
            ("extend", deep, False, greedy),
            ("burst", deep, False, greedy),
            ("burst", deep, True, greedy),
            ("burst, sampled", deep, True, sampled),
        ):
            engine = self.engine(streams, context, audio_head)
            for slot in range(streams):
                engine.begin(slot, sampling)
                with engine.cached.extend([ExtendRow(slot, 0, [1] * (start + rows), None)]):
                    pass  # counts as read: what the caches hold does not change how long a call takes
            work: Callable[[], object]
            if kind == "extend":
                moved = parts.step(streams, start)
                work = partial(engine.extend, [ExtendRow(slot, start, [1] * rows, 0) for slot in range(streams)])
            else:
                moved = parts.burst(streams, start, audio_head)
                bursts = [BurstRow(slot, start, start + rows, [1] * rows, 0, 0) for slot in range(streams)]
                work = partial(engine.burst, bursts)
            yield Call(kind, rows, "audio-only" if audio_head else "full", streams, moved, engine, work)

    def steps(self, streams: int, context: int, repeats: int) -> Iterator[Row]:
        """Each of `calls`, timed."""
        for call in self.calls(streams, context):
            took_ms = milliseconds(call.work, self.device, repeats)
            floor_ms = call.moved / self.bandwidth * 1e3
            yield {
                "call": call.name, "kind": call.kind, "head": call.head, "streams": streams, "ms": took_ms,
                "floor_ms": floor_ms, "achieved_gb_s": call.moved / took_ms / 1e6, "share": floor_ms / took_ms,
            }  # fmt: skip

    @torch.inference_mode()
    def host_shares(self, streams: int, context: int, repeats: int) -> Iterator[Row]:
        """Each of `calls`, taken apart: its program alone on the device, the host's time to launch it, and the host's
        time to write its inputs (and read a result that is there). ms, medians; what is left is waiting."""
        for call in self.calls(streams, context):
            whole = milliseconds(call.work, self.device, repeats)
            (program,) = call.engine.programs.values()
            launch = []
            for _ in range(repeats):
                synchronize(self.device)
                start = time.perf_counter()
                output = program.launch()
                launch.append((time.perf_counter() - start) * 1e3)
            alone = milliseconds(lambda: [program.launch() for _ in range(10)], self.device, repeats) / 10  # noqa: B023
            # Only this call of the program leaves the device out: inputs are written, its last output is read.
            program.run = lambda: output  # type: ignore[method-assign]  # noqa: B023
            host = milliseconds(call.work, self.device, repeats)
            yield {
                "call": call.name, "head": call.head, "streams": streams, "ms": whole, "device_ms": alone,
                "launch_ms": median(launch), "host_ms": host,
            }  # fmt: skip

    def profiles(self, streams: int, context: int) -> Iterator[Row]:
        """Each of `calls` but the backbone's single row, kernel by kernel; "table" is the text of it."""
        for call in self.calls(streams, context):
            if call.rows == 1:
                continue
            made = profile_call(call.work, self.device)
            yield {
                "call": call.name, "kind": call.kind, "head": call.head, "streams": streams,
                "launches": made.launches, "span_ms": made.span_us / 1e3, "busy_ms": made.busy_us / 1e3,
                "longest_gap_us": made.longest_gap_us, "table": made.table(),
            }  # fmt: skip

    def prepare(self, slots: int, context: int, chunk: int, audio_head: bool) -> Row:
        """What a server waits for: all programs of `slots` streams. Memory in GiB, as the driver counts it."""
        free = self._free_gib()
        engine = self.engine(slots, context, audio_head)
        with_slots, start = self._free_gib(), time.perf_counter()
        programs = engine.prepare(chunk)
        synchronize(self.device)
        return {
            "slots": slots, "context": context, "chunk": chunk, "programs": programs,
            "seconds": time.perf_counter() - start, "slots_gib": free - with_slots,
            "programs_gib": with_slots - self._free_gib(), "free_gib": self._free_gib(),
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
        engine = self.engine(1, 256, audio_head)
        times = []
        for turn in range(2 * repeats):
            scheduler, (stream,) = _submit(engine, mode, 2 * FIRST_CHUNK_TOKENS, 1)
            synchronize(self.device)
            start = time.perf_counter()
            while stream.generated < FIRST_CHUNK_TOKENS:
                scheduler.step()
            if turn >= repeats:  # the first half warms up
                times.append((time.perf_counter() - start) * 1e3)
            _end(scheduler, [stream])
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
        full = self.engine(1, context, False, banned)
        sliced = self.engine(1, context, True, banned)
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


def _head_start(streams: int) -> int:
    """Tokens a stream can make while the prompts of the others are read, one a step."""
    return FIRST_CHUNK_TOKENS * (streams - 1)


def _run(
    engine: TorchCudaLanguageModel, mode: str, tokens: int, streams: int, limit_s: float
) -> tuple[int, float, float]:
    """All streams running at once, from the last one's first token until they made `tokens` each on average or
    `limit_s` is over: tokens of a stream, mean length of its cache, tokens/s of all streams."""
    scheduler, running = _submit(engine, mode, tokens + _head_start(streams), streams)
    while any(stream.generated == 0 for stream in running):
        scheduler.step()

    def length() -> int:
        return sum(len(stream.tokens) for stream in running)

    before, start = length(), time.perf_counter()
    while (
        length() < before + tokens * streams
        and not any(stream.ended for stream in running)
        and time.perf_counter() - start < limit_s
    ):
        scheduler.step()
    after, took = length(), time.perf_counter() - start
    _end(scheduler, running)
    return (after - before) // streams, (before + after) / 2 / streams, (after - before) / took


def _end(scheduler: Scheduler, streams: Sequence[Stream]) -> None:
    """Free the slots of streams that have not come to their end."""
    for stream in streams:
        if not stream.ended:
            scheduler.end(stream, "cancelled", "measured")


def _submit(engine: TorchCudaLanguageModel, mode: str, tokens: int, streams: int) -> tuple[Scheduler, list[Stream]]:
    scheduler = Scheduler(engine, end_tokens=())
    requests = [greedy_request(p, NAMED_MODES[mode], tokens) for p in random_prompts(streams, engine.vocab_size // 2)]
    return scheduler, [scheduler.submit(str(number), request) for number, request in enumerate(requests)]
