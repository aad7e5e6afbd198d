"""At the start of an engine each kernel runs against its reference, on random rows of the engine's own sizes.

A kernel that disagrees, or cannot be compiled or launched on this GPU, is switched off by name with one line in the
log: its reference serves.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vita_audio.checkpoint.configs import LanguageModelConfig
from vita_audio.contract.errors import EngineError
from vita_audio.engines.interface import Sampling
from vita_audio.engines.torch.sampler import SamplingTable
from vita_audio.engines.torch_cuda.fp8 import Matrix, quantise
from vita_audio.engines.torch_cuda.kernels import compile_cache
from vita_audio.engines.torch_cuda.kernels.draw import Draws
from vita_audio.engines.torch_cuda.kernels.language import INSTALLED
from vita_audio.engines.torch_cuda.kernels.names import NAMES
from vita_audio.engines.torch_cuda.kernels.operations import REFERENCES, Operations
from vita_audio.engines.torch_cuda.network import Spans, attend_rectangle, rotary_tables
from vita_audio.engines.torch_cuda.shapes import Shape

logger = logging.getLogger(__name__)

#: Packed rows: of one stream's step, of its burst, of many streams.
ROWS = (1, 16, 64)
#: Largest difference, as a share of the number and of the mean size beside it. A kernel rounds once where its reference
#: rounds twice, and sums in another order: in bfloat16 two steps apart; a wrong row or column is off by all of it.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2.0**-6}


@dataclass(frozen=True, slots=True)
class Case:
    """What the kernels of an engine are checked at.

    Attributes:
        config: sizes.
        context: rows of a slot.
        like: a tensor of the engine's device and number type.
        processors, capability: of the GPU.
        fp8: whether matrices are multiplied in FP8 too.
    """

    config: LanguageModelConfig
    context: int
    like: Tensor
    processors: int
    capability: int
    fp8: bool = False

    def random(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.like.device).to(self.like.dtype)

    def integers(self, high: int, count: int) -> Tensor:
        return torch.randint(high, (count,), device=self.like.device)

    def different(self, high: int, count: int) -> Tensor:
        """`count` integers below `high`, none twice: rows that are written."""
        return torch.randperm(high, device=self.like.device)[:count]


#: What one kernel makes of random rows (the same each time), by some operations.
Check = Callable[[Operations, Case, int], list[Tensor]]


def _norm(ops: Operations, case: Case, rows: int) -> list[Tensor]:
    config = case.config
    x, weight = case.random(rows, config.hidden_size), case.random(config.hidden_size)
    last, at, store = case.integers(rows, 3), case.different(rows + 8, rows), case.random(rows + 8, config.hidden_size)
    eps = config.rms_norm_eps
    return [
        ops.norm(x, weight, eps),
        *ops.final_norm(x, weight, eps, last),
        *ops.final_norm(x, weight, eps, last, store, at),
    ]


def _enter(ops: Operations, case: Case, rows: int) -> list[Tensor]:
    hidden, eps = case.config.hidden_size, case.config.rms_norm_eps
    ids, id_at = case.integers(99, 2 * rows), case.integers(rows, rows)
    embedding, states = case.random(99, hidden), case.random(rows + 8, hidden)
    norms = case.random(hidden), case.random(hidden)
    return [
        ops.enter(ids, id_at, rows, embedding, *of, *norms, eps)
        for of in ((states, case.integers(rows + 8, rows)), (states[:rows], None))
    ]


def _rotate(ops: Operations, case: Case, rows: int) -> list[Tensor]:
    config = case.config
    width = (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
    qkv, bias = case.random(rows, width), case.random(width)
    rotary = rotary_tables(case.context, config.head_dim, config.rope_theta, case.like.device)
    cache = case.random(rows + 8, 2, config.num_key_value_heads, config.head_dim)
    q = ops.rotate(qkv, bias, rotary, case.integers(case.context, rows), cache, case.different(rows + 8, rows))
    return [q, cache]


def _gate(ops: Operations, case: Case, rows: int) -> list[Tensor]:
    return [ops.gate(case.random(rows, 2 * case.config.intermediate_size))]


def _linear(ops: Operations, case: Case, rows: int) -> list[Tensor]:
    """In bfloat16 and, where there are such weights, in FP8: there more rows have tilings of their own, which twice as
    many rows reach as well."""
    made = _products(ops, case, rows, lambda weight: weight)
    if case.fp8:
        for count in (rows, 2 * rows):
            made += _products(ops, case, count, quantise)
    return made


def _products(ops: Operations, case: Case, rows: int, stored: Callable[[Tensor], Matrix]) -> list[Tensor]:
    """Each K that there is, with what follows it; fewer columns than the weights have, so that K is split."""
    config, columns = case.config, 512
    hidden, inner = config.hidden_size, config.intermediate_size

    def made(k: int, **follows: Any) -> Tensor:
        return ops.linear(case.random(rows, k), stored(case.random(columns, k) / k**0.5), **follows)

    residual = [case.random(rows, columns) for _ in range(2)]
    return [
        made(hidden),
        made(2 * hidden, bias=case.random(columns)),
        made(hidden, residual=residual[0]),
        made(hidden, gate=True),
        made(inner, residual=residual[1]),
    ]


def _attention(ops: Operations, case: Case, rows: int) -> list[Tensor]:
    """All rows in the second of two slots, at its end."""
    config, rows = case.config, min(rows, case.context)
    shape = Shape(rows, 1, rows, case.context, True)
    q = case.random(rows, config.num_attention_heads, config.head_dim)
    cache = case.random(2 * case.context + 1, 2, config.num_key_value_heads, config.head_dim)
    start = case.context - rows
    row = torch.arange(rows, device=q.device)
    one, none, count, first = (torch.full((1,), value, device=q.device) for value in (1, 0, rows, start))
    spans = Spans(one, none, count, first, row, row + start, row + start + case.context)
    if ops is REFERENCES:
        return [attend_rectangle(shape, spans, 2, q.shape[1] // cache.shape[2])(q, cache)]
    from vita_audio.engines.torch_cuda.split_attention import attend_split  # Triton is not on CPU machines

    attend = attend_split(shape, spans, case.context, case.processors, case.capability, ops.pdl)
    return [attend(q, cache)]


#: How the streams of a check sample: the last one beyond the largest logits that a kernel keeps.
_SAMPLINGS = (
    Sampling(),
    Sampling(1.0, 50, 0.9, 1.05, 2**64 - 1),
    Sampling(0.7, 20, seed=5),
    Sampling(top_p=0.5, temperature=1.0),
)


def _draw(ops: Operations, case: Case, rows: int) -> list[Tensor]:
    """The second draw of a call, over the full head and over its upper half."""
    vocab, streams, made = case.config.vocab_size, min(rows, 2 * len(_SAMPLINGS)), []
    table, device = SamplingTable.create(streams, case.like.device), case.like.device
    for slot in range(streams):
        table.put(slot, _SAMPLINGS[slot % len(_SAMPLINGS)], vocab)
    for first_id in (0, vocab // 2):
        logits = 4 * case.random(streams, vocab - first_id)  # few are likely: a sum's rounding decides no draw
        seen, banned = torch.rand(streams + 1, vocab, device=device) < 0.2, torch.rand(vocab, device=device) < 0.2
        arrived = torch.zeros(streams, dtype=torch.int32, device=device)
        fields = case.different(streams, streams), case.integers(999, streams), case.integers(3, streams)
        drawn, ids = torch.zeros(streams, 2, dtype=torch.int64, device=device), case.integers(9, 3 * streams)
        end = 3 * torch.arange(streams, device=device)
        ops.draw(logits, Draws(table, seen, banned, arrived, *fields), 1, first_id, drawn, ids, end)
        made += [drawn, ids, seen[:-1], arrived]
    return made


CHECKS: dict[str, Check] = {
    "norm": _norm,
    "enter": _enter,
    "rotate": _rotate,
    "gate": _gate,
    "linear": _linear,
    "draw": _draw,
    "attention": _attention,
}


def faulty(build: Callable[[frozenset[str]], Operations], case: Case, off: frozenset[str]) -> frozenset[str]:
    """Names of kernels that must not serve, with those that are `off` already; each that is found is logged.

    Args:
        build: operations without the kernels of some names.

    Raises:
        EngineError: a kernel has left the GPU in a state in which nothing runs any more.
    """
    wanted = [name for name in CHECKS if name not in off]
    if not wanted:
        return off
    if not INSTALLED or not compile_cache.make_writable():
        why = "no folder for compiled kernels" if INSTALLED else "the package `triton` is not installed"
        logger.warning("kernels off: %s; PyTorch's own operations run, slower", why)
        return frozenset(NAMES)
    for name in wanted:
        fault = _fault(name, build(off), case)
        if fault and "pdl" not in off and not _fault(name, build(off | {"pdl"}), case):
            logger.warning("kernel %s runs without programmatic dependent launch only, so all do: %s", name, fault)
            off |= {"pdl"}
        elif fault:
            logger.warning("kernel %s is off, its reference runs: %s", name, fault)
            off |= {name}
    return off


def _fault(name: str, ops: Operations, case: Case) -> str:
    """What is wrong with a kernel; "" where it agrees with its reference."""
    for rows in ROWS:
        expected = _made(name, REFERENCES, case, rows)
        try:
            made = _made(name, ops, case, rows)
        except EngineError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a compiler or a driver raises: serving goes on without it
            _synchronise(name, ops, case)
            return f"{rows} rows: {one_line(error)}"
        for one, other in zip(made, expected, strict=True):
            if wrong := disagreement(one, other):
                return f"{rows} rows: {wrong}"
    return ""


def _made(name: str, ops: Operations, case: Case, rows: int) -> list[Tensor]:
    with torch.random.fork_rng([case.like.device] if case.like.is_cuda else []), torch.inference_mode():
        torch.manual_seed(rows)
        made = CHECKS[name](ops, case, rows)
    _synchronise(name, ops, case)
    return made


def _synchronise(name: str, ops: Operations, case: Case) -> None:
    if not case.like.is_cuda:
        return
    try:
        torch.cuda.synchronize(case.like.device)
    except RuntimeError as error:  # the context is lost: every later call fails too
        by = "PyTorch" if ops is REFERENCES else f"kernel {name}"
        raise EngineError(
            f"{by} has stopped the GPU: {one_line(error)}; start again with --kernels-off {name}"
        ) from error


def disagreement(made: Tensor, expected: Tensor) -> str:
    """In words; "" where they agree within TOLERANCE, or are equal where they are no fractions."""
    if made.shape != expected.shape or made.dtype != expected.dtype:
        return f"{_kind(made)} instead of {_kind(expected)}"
    if not expected.is_floating_point():
        wrong = int((made != expected).sum())
        return f"{wrong} of {made.numel()} numbers of {_kind(made)} differ" if wrong else ""
    share = TOLERANCE[expected.dtype]
    one, other = made.float(), expected.float()
    allowed = share * (other.abs() + other.square().mean().sqrt())
    wrong = int((~((one - other).abs() <= allowed)).sum())
    if not wrong:
        return ""
    largest = float((one - other).abs().max())
    return f"{wrong} of {made.numel()} numbers of {_kind(made)} differ, by up to {largest:.3g} (allowed {share:.2g})"


def _kind(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
