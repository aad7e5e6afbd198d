"""One engine call for all inputs of equal shape, results back in the order of the inputs."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from vita_audio.engines.interface import Floats

Item = TypeVar("Item")
Key = TypeVar("Key", bound=Hashable)


def groups_of(items: Sequence[Item], key: Callable[[Item], Key]) -> dict[Key, list[int]]:
    """Positions of the items by their `key`, in their order."""
    groups: dict[Key, list[int]] = {}
    for position, item in enumerate(items):
        groups.setdefault(key(item), []).append(position)
    return groups


def run_grouped(
    items: Sequence[Item], key: Callable[[Item], Hashable], run: Callable[[list[Item]], Floats]
) -> list[Floats]:
    """Call `run` once for each group of items with equal `key`; it returns [group, ...]. One result per item."""
    results: list[Floats] = [np.zeros(0, np.float32)] * len(items)
    for positions in groups_of(items, key).values():
        for position, result in zip(positions, run([items[position] for position in positions]), strict=True):
            results[position] = result
    return results


def stacked(rows: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """Named arrays of several streams with a first axis for the stream."""
    if len(rows) == 1:  # without a copy: noise is large
        return {name: values[None] for name, values in rows[0].items()}
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
