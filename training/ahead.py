"""What is needed next, made in threads meanwhile: a GPU does not wait for its data, a disk not for one core."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")

_MOST_AHEAD = 256  # results that wait to be taken: they may be large


def in_threads(
    function: Callable[[S], T], items: Iterable[S], ahead: int = _MOST_AHEAD, threads: int | None = None
) -> Generator[T, None, None]:
    """`map` in threads, at most `ahead` results before the one that is taken; an error is raised in its place.

    Args:
        items: may be endless.
        ahead: 0 makes each result when it is taken, without a thread: on a CPU it would take the computation's cores.
        threads: None is one for each core.
    """
    if not ahead:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(threads) as pool:
        coming: deque[Future[T]] = deque()
        for item in items:
            coming.append(pool.submit(function, item))
            if len(coming) > ahead:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()
