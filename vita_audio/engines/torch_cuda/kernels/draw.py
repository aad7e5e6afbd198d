"""The draw of one token for each stream, and what follows it: the id goes where the next module reads it, and into the
ids that the repetition penalty knows.

The kernel does all of it in one launch. Blocks share a row of logits: each keeps the largest of its part, and the block
that comes last draws from what they kept. A row is drawn alike in any company, from any number of candidates, and as on
a CPU: logits are penalised bit for bit as there, equal ones are ordered by id, and the uniform number is the same.
Probabilities are numbers of float64 in both. Only where a draw goes on beyond the largest that are kept, the kernel
takes the exponential in float32: a draw within about 1e-8 of a border between two tokens may fall on its other side.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vita_audio.engines.torch.sampler import BANNED_LOGIT, NARROW, SamplingTable, draw, width_of
from vita_audio.engines.torch_cuda.kernels import philox
from vita_audio.engines.torch_cuda.kernels.language import (
    launch_next,
    launch_options,
    power_of_two,
    tl,
    triton,
    wait_for_previous,
)

#: Logits that a block looks at.
PART = 8192
_READ = 2048  # and reads at once, where the largest do not decide
_WARP = 512  # of them a warp


@dataclass(frozen=True, slots=True)
class Draws:
    """What the draws of a call share. Rows of a stream are picked by its `slot` from what all slots have."""

    table: SamplingTable  # of all slots
    seen: Tensor  # bool [slots + 1, vocab]: ids that the repetition penalty applies to; the last row is no slot's
    banned: Tensor  # bool [vocab]: ids that may not come out
    arrived: Tensor  # int32 [slots], all zero between launches: blocks of a row that are done
    slot: Tensor  # int64 [streams]
    index: Tensor  # int64 [streams], token index of the first draw of the call; -1: the stream draws nothing
    commit: Tensor  # int64 [streams], how many draws of the call count as seen


def reference(
    logits: Tensor,
    draws: Draws,
    number: int,
    first_id: int,
    made: Tensor,
    ids: Tensor | None = None,
    id_end: Tensor | None = None,
) -> None:
    """Draw `number` of a call.

    On a GPU every row is sorted whole, since a captured program cannot ask who samples: slow, for comparing.

    Args:
        logits: float32 or bfloat16 [streams, head rows], contiguous; row i is of the id `first_id` + i.
        made: int64 [streams, draws of the call]; column `number` becomes the ids drawn. What streams get that draw
            nothing is arbitrary.
        ids, id_end: int64 [any] and [streams]; what stream s draws is put at `ids[id_end[s] + number]`.
    """
    rows, seen = draws.table.rows(draws.slot), draws.seen
    span = slice(first_id, first_id + logits.shape[1])
    width = width_of(rows, logits.shape[1])
    uniform = philox.reference(rows.seed, (draws.index + number).clamp(min=0)) if width > 1 else rows.top_p
    known = seen[:, span].index_select(0, draws.slot)
    token = first_id + draw(logits.float(), known, draws.banned[span], rows, uniform, width)
    made[:, number] = token
    drawn = draws.index >= 0
    noted = torch.where(drawn & (draws.commit > number), draws.slot, len(seen) - 1)
    seen.view(-1).index_fill_(0, noted * seen.shape[1] + token, True)
    if ids is not None and id_end is not None:
        place = id_end + number
        ids.index_copy_(0, place, torch.where(drawn, token, ids.index_select(0, place)))


def fused(
    logits: Tensor,
    draws: Draws,
    number: int,
    first_id: int,
    made: Tensor,
    ids: Tensor | None = None,
    id_end: Tensor | None = None,
    pdl: bool = False,
) -> None:
    """`reference` in one launch."""
    streams, count = logits.shape
    part = min(PART, max(NARROW, power_of_two(count)))
    parts = -(-count // part)
    kept = torch.empty(streams, parts + 1, NARROW, dtype=torch.int64, device=logits.device)
    table = draws.table
    _draw_kernel[(parts, streams)](
        logits, table.penalty, table.inv_temperature, table.top_p, table.top_k, table.greedy.view(torch.uint8),
        table.seed, draws.seen.view(torch.uint8), draws.banned.view(torch.uint8), draws.slot, draws.index, draws.commit,
        ids if ids is not None else made, id_end if id_end is not None else draws.slot, made, kept, draws.arrived,
        number, made.stride(0), int(ids is not None),
        COUNT=count, VOCAB=draws.seen.shape[1], FIRST=first_id, PART=part, PARTS=parts, READ=min(part, _READ),
        KEPT=NARROW, PADDED_KEPT=power_of_two(parts) * NARROW, BANNED=BANNED_LOGIT, PDL=pdl,
        num_warps=max(1, part // _WARP), enable_fp_fusion=False, **launch_options(pdl),
    )  # fmt: skip


# A key is 64 bits that sort as a draw does: larger logits first, of equal ones the smaller id. Keys of a row are all
# different. The upper half is the float32 made to sort as an integer, the lower 2^31 - 1 - id.
@triton.jit
def _keys(logits, seen, banned, penalty, at, BANNED: tl.constexpr, COUNT: tl.constexpr):
    """Keys and penalised logits of some rows of the head; the key of a row beyond its end is the lowest int64."""
    real = at < COUNT
    value = tl.load(logits + at, mask=real, other=0.0).to(tl.float32)
    value = tl.where(tl.load(banned + at, mask=real, other=0) != 0, BANNED, value)
    penalised = tl.where(value < 0, value * penalty, tl.div_rn(value, penalty))
    value = tl.where(tl.load(seen + at, mask=real, other=0) != 0, penalised, value)
    bits = tl.where(value == 0, 0.0, value).to(tl.int32, bitcast=True)  # there is one zero
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    keys = (ordered.to(tl.int64) << 32) | (0x7FFFFFFF - at).to(tl.int64)
    return tl.where(real, keys, -0x8000000000000000), value


@triton.jit
def _value(keys):
    """The penalised logits of keys."""
    ordered = (keys >> 32).to(tl.int32)
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _middle(low, high):
    return (low >> 1) + (high >> 1) + (low & high & 1)


@triton.jit
def _keep_largest(keys, into, KEPT: tl.constexpr):
    """Store the KEPT largest keys, in any order; the lowest int64 for each that is missing. Found by bisection."""
    least = tl.min(keys, 0) * 0 - 0x7FFFFFFFFFFFFFFF
    found = tl.sum((keys >= least).to(tl.int32), 0)
    low, high, enough = least, tl.max(keys, 0), found > KEPT
    while enough & (found != KEPT):
        least = _middle(low, high)
        found = tl.sum((keys >= least).to(tl.int32), 0)
        low = tl.where(found > KEPT, least, low)
        high = tl.where(found > KEPT, high, least)
    taken = keys >= least
    tl.store(into + tl.cumsum(taken.to(tl.int32), 0) - 1, keys, mask=taken)
    place = tl.arange(0, KEPT)
    tl.store(into + place, tl.full([KEPT], -0x8000000000000000, tl.int64), mask=place >= found)


@triton.jit
def _from(
    logits, seen, banned, penalty, inv_temperature, top, least,
    BANNED: tl.constexpr, COUNT: tl.constexpr, READ: tl.constexpr,
):  # fmt: skip
    """Of the keys of a row that are at least `least`: how many there are, and their mass."""
    count, mass = 0, top.to(tl.float64) * 0
    for begin in range(0, COUNT, READ):
        keys, value = _keys(logits, seen, banned, penalty, begin + tl.arange(0, READ), BANNED, COUNT)
        taken = keys >= least
        count += tl.sum(taken.to(tl.int32), 0)
        mass += tl.sum(tl.where(taken, tl.exp(value * inv_temperature - top), 0.0).to(tl.float64), 0)
    return count, mass


@triton.jit
def _largest_below(logits, seen, banned, penalty, below, BANNED: tl.constexpr, COUNT: tl.constexpr, READ: tl.constexpr):
    largest = below * 0 - 0x7FFFFFFFFFFFFFFF
    for begin in range(0, COUNT, READ):
        keys, _value = _keys(logits, seen, banned, penalty, begin + tl.arange(0, READ), BANNED, COUNT)
        largest = tl.maximum(largest, tl.max(tl.where(keys < below, keys, -0x7FFFFFFFFFFFFFFF), 0))
    return largest


@triton.jit
def _first_beyond(
    logits, seen, banned, penalty, inv_temperature, top, highest, mass_of_all, most, limit, reached,
    BANNED: tl.constexpr, COUNT: tl.constexpr, READ: tl.constexpr,
):  # fmt: skip
    """Going down from the largest key: the first one up to which there are more than `most` keys, or a mass beyond
    `limit` (or equal to it, where `reached`). By bisection: a key that only it is below, the mass before it and with
    it."""
    low, low_count, low_mass = highest * 0 - 0x7FFFFFFFFFFFFFFF, COUNT, mass_of_all
    high, high_count, high_mass = highest + 1, 0, mass_of_all * 0
    while low_count - high_count > 1:
        middle = _middle(low, high)
        count, mass = _from(logits, seen, banned, penalty, inv_temperature, top, middle, BANNED, COUNT, READ)
        beyond = (count > most) | (mass > limit) | (reached & (mass == limit))
        low, low_count = tl.where(beyond, middle, low), tl.where(beyond, count, low_count)
        low_mass, high_mass = tl.where(beyond, mass, low_mass), tl.where(beyond, high_mass, mass)
        high, high_count = tl.where(beyond, high, middle), tl.where(beyond, high_count, count)
    return high, high_mass, low_mass


@triton.jit
def _drawn(
    logits, seen, banned, penalty, inv_temperature, top_k, top_p, uniform, best,
    BANNED: tl.constexpr, COUNT: tl.constexpr, READ: tl.constexpr, KEPT: tl.constexpr,
):  # fmt: skip
    """The key drawn from a row; `best` points to its KEPT largest keys. Where these do not decide, the row is read
    again, some twenty times."""
    keys = tl.load(best + tl.arange(0, KEPT), cache_modifier=".cg")
    rank = tl.sum((keys[None, :] > keys[:, None]).to(tl.int32), 1)
    highest = tl.max(keys, 0)
    top = _value(highest) * inv_temperature
    inside = (rank < top_k) & (keys > -0x8000000000000000)
    scaled = (_value(keys) * inv_temperature).to(tl.float64)
    weight = tl.where(inside, tl.exp(scaled - top.to(tl.float64)), 0.0)
    upto = tl.sum(tl.where(keys[None, :] >= keys[:, None], weight[None, :], 0.0), 1)  # along their order
    total = tl.sum(weight, 0)
    wide = (top_k > KEPT) & (COUNT > KEPT)
    of_all = total
    if wide:
        every = highest * 0 - 0x7FFFFFFFFFFFFFFF
        _count, of_all = _from(logits, seen, banned, penalty, inv_temperature, top, every, BANNED, COUNT, READ)
        total = of_all
        if top_k < COUNT:
            _above_k, total, _with_k = _first_beyond(
                logits, seen, banned, penalty, inv_temperature, top, highest, of_all, top_k, of_all * 2, False,
                BANNED, COUNT, READ,
            )  # fmt: skip
    kept = inside & (upto - weight < total * top_p)
    mass = tl.sum(tl.where(kept, weight, 0.0), 0)
    more = wide & (tl.sum(kept.to(tl.int32), 0) == KEPT)
    if more:
        mass = total
        if top_p < 1:
            _above_p, _before_p, mass = _first_beyond(
                logits, seen, banned, penalty, inv_temperature, top, highest, of_all, COUNT, total * top_p, True,
                BANNED, COUNT, READ,
            )  # fmt: skip
    target = uniform * mass
    passed = tl.sum((kept & (upto <= target)).to(tl.int32), 0)
    # A draw just below 1 can pass every candidate by rounding: the last one that is kept is meant.
    last = tl.maximum(tl.sum((kept & (weight > 0)).to(tl.int32), 0) - 1, 0)
    key = tl.max(tl.where(rank == tl.minimum(passed, last), keys, -0x8000000000000000), 0)
    if more & (passed == KEPT):
        above, _before, _with = _first_beyond(
            logits, seen, banned, penalty, inv_temperature, top, highest, of_all, COUNT, target, False,
            BANNED, COUNT, READ,
        )  # fmt: skip
        key = _largest_below(logits, seen, banned, penalty, above, BANNED, COUNT, READ)
    return key


# The fields of a call lie anywhere in its input buffer and are read number by number: a kernel of its own for each
# alignment would be compiled for nothing.
@triton.jit(
    do_not_specialize=["number", "made_stride", "placed"],
    do_not_specialize_on_alignment=["slot", "index", "commit", "ids", "id_end", "made"],
)
def _draw_kernel(
    logits, penalty, inv_temperature, top_p, top_k, greedy, seed, seen, banned, slot, index, commit,
    ids, id_end, made, kept, arrived, number, made_stride, placed,
    COUNT: tl.constexpr, VOCAB: tl.constexpr, FIRST: tl.constexpr, PART: tl.constexpr, PARTS: tl.constexpr,
    READ: tl.constexpr, KEPT: tl.constexpr, PADDED_KEPT: tl.constexpr, BANNED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Block (part, stream): keep the largest keys of a part; the last block of a stream draws."""
    part, row = tl.program_id(0), tl.program_id(1)
    wait_for_previous(PDL)
    launch_next(PDL)
    token_index = tl.load(index + row)
    if token_index < 0:
        return
    at_slot = tl.load(slot + row)
    best_only = tl.load(greedy + at_slot) != 0
    factor = tl.load(penalty + at_slot)
    logits += row * COUNT
    known = seen + at_slot * VOCAB + FIRST
    banned += FIRST
    kept += row * (PARTS + 1) * KEPT
    keys, _ = _keys(logits, known, banned, factor, part * PART + tl.arange(0, PART), BANNED, COUNT)
    best = tl.max(keys, 0)
    if best_only:
        tl.store(kept + part * KEPT, best)
    else:
        _keep_largest(keys, kept + part * KEPT, KEPT)
    tl.debug_barrier()  # what the threads of this block stored comes before its arrival
    if PARTS > 1:
        if tl.atomic_add(arrived + row, 1, sem="acq_rel", scope="gpu") != PARTS - 1:
            return
        tl.store(arrived + row, 0)
        place = tl.arange(0, PADDED_KEPT)
        stored = (place < PARTS * KEPT) & ((place % KEPT == 0) | (best_only == 0))
        all_kept = tl.load(kept + place, mask=stored, other=-0x8000000000000000, cache_modifier=".cg")
        best = tl.max(all_kept, 0)
        if best_only == 0:
            _keep_largest(all_kept, kept + PARTS * KEPT, KEPT)
        kept += PARTS * KEPT
        tl.debug_barrier()
    if best_only == 0:
        uniform = philox.uniform(tl.load(seed + at_slot), token_index + number).to(tl.float64)
        best = _drawn(
            logits, known, banned, factor, tl.load(inv_temperature + at_slot), tl.load(top_k + at_slot),
            tl.load(top_p + at_slot), uniform, kept, BANNED, COUNT, READ, KEPT,
        )  # fmt: skip
    token = FIRST + 0x7FFFFFFF - (best & 0x7FFFFFFF)
    tl.store(made + row * made_stride + number, token)
    if placed:
        tl.store(ids + tl.load(id_end + row) + number, token)
    if number < tl.load(commit + row):
        tl.store(seen + at_slot * VOCAB + token, 1)
