"""What one implementation did on one case."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True, slots=True)
class Result:
    """`detail` is the worst error against its limit, the first differing token, or the fault that stopped the case."""

    case: str
    implementation: str
    detail: str
    passed: bool


def compare_tokens(case: str, implementation: str, made: Sequence[int], expected: Sequence[int]) -> Result:
    """Tokens must be equal; otherwise names the first that differs."""
    made, expected = [int(t) for t in made], [int(t) for t in expected]
    if made == expected:
        return Result(case, implementation, f"{len(made)} tokens equal", True)
    first = next((i for i, (a, b) in enumerate(zip(made, expected, strict=False)) if a != b), None)
    if first is None:
        return Result(case, implementation, f"{len(made)} tokens, expected {len(expected)}", False)
    return Result(case, implementation, f"token {first}: {made[first]}, expected {expected[first]}", False)


def compare_values(
    case: str, implementation: str, made: ArrayLike, expected: ArrayLike, limit: float, relative: bool = False
) -> Result:
    """The worst absolute difference, or (`relative`) that difference over the largest expected magnitude."""
    made, expected = np.asarray(made), np.asarray(expected)
    if made.shape != expected.shape:
        return Result(case, implementation, f"shape {made.shape}, expected {expected.shape}", False)
    error = float(np.abs(made - expected).max(initial=0.0))
    if relative:
        error /= max(float(np.abs(expected).max(initial=0.0)), 1e-12)
    kind = "relative error" if relative else "error"
    return Result(case, implementation, f"{kind} {error:.1e} (limit {limit:.0e})", bool(error <= limit))
