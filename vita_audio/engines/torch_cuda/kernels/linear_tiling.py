"""How a product with a weight matrix is cut into blocks of a GPU.

A product of few rows is bound by the bytes of its weights, so all that counts is that enough of them are on their way.
By Little's law a memory of 3 TB/s that answers after about 0.8 us needs 2.4 MB in flight: 18 KB for each of the 132
multiprocessors of an H100. A block keeps its pipeline's stages but one in flight, 48 KB for the first of the tilings
below, and two blocks fit a multiprocessor (80 KB of its 227 KB of shared memory, 56 registers of each of 128 threads):
five times what is needed, so that blocks that begin or end leave no gap. Where there are fewer tiles of columns than
that many blocks, K is split too.
"""

from __future__ import annotations

from typing import NamedTuple

#: Rows that one block takes in whole: the least that matrix units multiply.
FEW_ROWS = 16
#: Blocks that share tiles of a product at most: each such tile has a counter.
MAX_SPLIT_TILES = 4096
#: Blocks of a multiprocessor that are aimed at.
_RESIDENT = 2
#: Steps of K that a part of a split product has at least: a pipeline that never fills reads slowly.
_LEAST_STEPS = 4


class Product(NamedTuple):
    """A kind of product: x [rows, k] times a weight [n, k]; `gate` and `residual` are what follows it."""

    n: int
    k: int
    fp8: bool = False
    gate: bool = False
    residual: bool = False

    @property
    def columns(self) -> int:
        """Of the result."""
        return self.n // 2 if self.gate else self.n


class Tiling(NamedTuple):
    """A block makes `block_n` columns (of both halves, with a gate) of `block_m` rows, in steps of `block_k`; `split`
    blocks share the K of a tile. `stages` of weights are in a block's shared memory, `warps` are its threads / 32."""

    block_m: int
    block_n: int
    block_k: int
    stages: int
    warps: int
    split: int


def few_rows(product: Product, processors: int) -> list[Tiling]:
    """Tilings for up to FEW_ROWS rows, the one that is expected to be fastest first."""
    made = []
    for block_n, block_k, stages, warps in _FEW[product.fp8, product.gate]:
        tiles, steps = -(-product.columns // block_n), -(-product.k // block_k)
        wanted = max(1, round(_RESIDENT * processors / tiles))
        for split in (wanted, wanted // 2, 2 * wanted):
            tiling = Tiling(FEW_ROWS, block_n, block_k, stages, warps, _parts(split, steps, tiles))
            if tiling not in made:
                made.append(tiling)
    return made


def many_rows(product: Product, rows: int, processors: int) -> Tiling:
    """For more rows than FEW_ROWS."""
    block_m = next((size for size in (32, 64) if rows <= size), 128)
    block_n, block_k, stages, warps = _MANY[block_m]
    if product.gate:
        block_n //= 2
    tiles = -(-product.columns // block_n) * -(-rows // block_m)
    split = _parts(round(_RESIDENT * processors / tiles), -(-product.k // block_k), tiles)
    return Tiling(block_m, block_n, block_k, stages, warps, split)


def _parts(split: int, steps: int, tiles: int) -> int:
    """`split`, or as many parts as `steps` give: each but the last has as many."""
    split = min(split, steps // _LEAST_STEPS)
    if split <= 1 or tiles > MAX_SPLIT_TILES:
        return 1
    return -(-steps // -(-steps // split))


#: (FP8 weights, gate) -> (columns, step of K, stages, warps).
_FEW = {
    (False, False): ((64, 128, 4, 4), (128, 64, 5, 4), (32, 256, 4, 4)),
    (False, True): ((32, 128, 4, 4), (64, 64, 5, 4)),
    (True, False): ((64, 256, 4, 4), (128, 128, 4, 4), (64, 128, 5, 4)),
    (True, True): ((64, 128, 4, 4), (32, 256, 4, 4)),
}
_MANY = {32: (64, 128, 4, 4), 64: (64, 64, 4, 4), 128: (128, 64, 3, 8)}
