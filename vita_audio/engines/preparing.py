"""What engines do once for a shape, before anything is served, and what becomes of it when the device's memory ends."""

from __future__ import annotations

import logging
from collections.abc import Callable

from vita_audio.contract.errors import EngineError

log = logging.getLogger(__name__)

REMEDY = "give the language model fewer slots (--slots) or a smaller context (--context-tokens of the build)"


class NoMemory(EngineError):
    """The device has no memory for a program."""


def prepare_batches(name: str, most: int, prepare: Callable[[int], None]) -> None:
    """`prepare` batches of ..., 4, 2, 1, from the first that holds `most`; the largest first, so that smaller graphs
    find their memory in the pool.

    Args:
        name: of the engine, for the log.

    Raises:
        NoMemory: not even batches of one fit. Larger ones that do not are logged; their rows run in smaller batches.
    """
    batch = 1
    while batch < most:
        batch *= 2
    while batch:
        try:
            prepare(batch)
        except NoMemory as error:
            if batch == 1:
                raise NoMemory(f"{name}: {error}; {REMEDY}") from error
            log.warning("%s: %s: batches of %d run as smaller ones, slower; %s", name, error, batch, REMEDY)
        batch //= 2
