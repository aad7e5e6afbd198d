"""Sampling inside the MCTP network: the same draw as the other engines make, from the same uniform number.

Order of Hugging Face's processors: repetition penalty, temperature, top-k, top-p; then the inverse of the cumulative
distribution at `uniform`. After the penalty only rows that sample go on: a greedy burst has none, its tensors are
empty, and no top-k and no sort runs. So shapes choose, which the host sets; a conditional layer would wait for a value
in every module, and TensorRT-LLM's own networks keep plugins, as top-k is one, out of conditionals.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tensorrt_llm.functional import (
    Tensor,
    argmax,
    cast,
    concat,
    constant,
    eq,
    gather,
    gt,
    index_select,
    lt,
    minimum,
    op_or,
    select,
    softmax,
    topk,
    unsqueeze,
    where,
)
from tensorrt_llm.functional import sum as sum_along

_NEVER = float(np.finfo(np.float32).min / 4)


@dataclass(frozen=True, slots=True)
class SamplingInputs:
    """Inputs of the network."""

    seen: Tensor  # bool [streams, head rows]: ids of prompt and output, which the penalty applies to
    penalty: Tensor  # float32 [streams]; 1 is none
    token_rows: Tensor  # int32 [streams]: b where stream b takes its best id, streams + i where it is sampled_rows[i]
    sampled_rows: Tensor  # int32 [sampled], which streams sample; there may be none
    inv_temp: Tensor  # float32 [sampled]
    top_k: Tensor  # int32 [sampled], 1 to candidates
    top_p: Tensor  # float32 [sampled]
    uniform: Tensor  # float32 [sampled, modules], in [0, 1)


class Sampler:
    """Chooses one head row for each stream, module after module; what it chose is penalised from then on."""

    def __init__(self, inputs: SamplingInputs, rows: int, candidates: int, banned_rows: list[int]) -> None:
        self.inputs, self.candidates = inputs, candidates
        self._seen = inputs.seen
        columns = (inputs.penalty, inputs.inv_temp, inputs.top_k, inputs.top_p)
        self._penalty, self._inv_temp, self._top_k, self._top_p = (unsqueeze(column, 1) for column in columns)
        self._rows = constant(np.arange(rows, dtype=np.int32)[None])  # [1, rows]
        self._ranks = constant(np.arange(candidates, dtype=np.int32)[None])
        self._bias: Tensor | None = None
        if banned_rows:
            bias = np.zeros((1, rows), np.float32)
            bias[:, banned_rows] = _NEVER
            self._bias = constant(bias)
        earlier = np.triu(np.ones((1, candidates, candidates), np.float32))  # [1, earlier one, this one]
        self._up_to, self._before = constant(earlier), constant(np.triu(earlier, 1))

    def draw(self, logits: Tensor, module: int) -> Tensor:
        """logits float32 [streams, rows] -> head row int32 [streams, 1]."""
        inputs = self.inputs
        if self._bias is not None:
            logits = logits + self._bias
        penalised = where(lt(logits, 0.0), logits * self._penalty, logits / self._penalty)
        logits = where(self._seen, penalised, logits)
        best = cast(argmax(logits, dim=1, keepdim=True), "int32")
        drawn = self._drawn(index_select(logits, 0, inputs.sampled_rows), module)
        return index_select(concat([best, drawn], dim=0), 0, inputs.token_rows)

    def _drawn(self, logits: Tensor, module: int) -> Tensor:
        """Penalised logits float32 [sampled, rows] -> head row int32 [sampled, 1]."""
        values, ids = topk(logits, self.candidates, dim=1)
        scaled = values * self._inv_temp  # [sampled, candidates], best first
        p = softmax(where(lt(self._ranks, self._top_k), scaled, -1e30), dim=1)
        p = where(lt(_running_sum(p, self._before), self._top_p), p, 0.0)
        target = sum_along(p, 1, keepdim=True) * unsqueeze(select(self.inputs.uniform, 1, module), 1)
        beyond = gt(_running_sum(p, self._up_to), target)
        passed = sum_along(cast(beyond, "float32"), 1, keepdim=True) * -1.0 + float(self.candidates)
        # A uniform draw just below 1 can pass every candidate by rounding: the last one with any mass is meant.
        last = sum_along(cast(gt(p, 0.0), "float32"), 1, keepdim=True) - 1.0
        return gather(cast(ids, "int32"), 1, cast(minimum(passed, last), "int32"))

    def remember(self, row: Tensor) -> None:
        """Penalise these head rows, int32 [streams, 1], from the next module on."""
        self._seen = op_or(self._seen, eq(self._rows, row))


def _running_sum(p: Tensor, triangle: Tensor) -> Tensor:
    """p [sampled, candidates]. Not a matrix product: TF32 would move the borders of the candidates by 1e-3."""
    return sum_along(unsqueeze(p, 2) * triangle, 1)
