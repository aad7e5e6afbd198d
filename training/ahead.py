"""What is needed next, made in threads meanwhile: a GPU does not wait for its data, a disk not for one core."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

S = TypeVar("S")
T = TypeVar("T")

_MOST_AHEAD = 256  # results that wait to be taken: they may be large


class Ahead(Generic[T]):
    """`ahead[step]` is `make(step)`; steps are asked for in order, each once.

    What `make` raises is raised where the step is asked for.

    Args:
        on: False makes each step when it is asked for: on a CPU a thread would take the cores of the computation.
    """

    def __init__(self, make: Callable[[int], T], on: bool = True) -> None:
        self._make = make
        self._pool = ThreadPoolExecutor(1, "ahead") if on else None
        self._coming: tuple[int, Future[T]] | None = None

    def __getitem__(self, step: int) -> T:
        if self._pool is None:
            return self._make(step)
        known, future = self._coming or (None, None)
        item = future.result() if future is not None and known == step else self._make(step)
        self._coming = (step + 1, self._pool.submit(self._make, step + 1))
        return item


def in_threads(function: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
    """`map` with a thread for each core and a bounded number of results ahead of the one that is taken."""
    with ThreadPoolExecutor() as pool:
        coming: deque[Future[T]] = deque()
        for item in items:
            coming.append(pool.submit(function, item))
            if len(coming) >= _MOST_AHEAD:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()
