"""Which tokens the caches of each slot hold: one account and one set of refusals for every engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from vita_audio.contract.errors import EngineError
from vita_audio.engines.interface import BurstRow, Embedded, ExtendRow, Sampling


def check_embedded(embedded: Embedded, tokens: int, size: int) -> None:
    """Whether rows of embeddings fit `tokens` ids that they belong to.

    Args:
        size: `embedded_size` of the engine.

    Raises:
        EngineError: the engine takes none, there are not as many rows as places, rows have another size or values that
            are not finite, or places are not ascending and within the tokens.
    """
    places, rows = embedded.places, embedded.rows
    if not size:
        raise EngineError(
            "embeddings: this checkpoint reads speech as tokens and takes none; serve a Plus checkpoint, or build its "
            "engines again"
        )
    if rows.ndim != 2 or places.shape != rows.shape[:1] or rows.shape[1] != size:
        raise EngineError(
            f"embeddings: shape {list(rows.shape)} for places {list(places.shape)} is not valid: one row of {size} "
            "values for each place; take the speech encoder and the language model from one checkpoint"
        )
    if len(places) and not (places[0] >= 0 and places[-1] < tokens and np.all(places[1:] > places[:-1])):
        raise EngineError(
            f"embeddings: places from {places[0]} to {places[-1]} are not valid: ascending, in [0, {tokens}); "
            "count them from the first token"
        )
    if not np.isfinite(rows).all():
        raise EngineError("embeddings: a value is not finite; look for it in the speech, then in the speech encoder")


class CachedTokens:
    """Follows the calls of an engine, on the host.

    Args:
        slots: streams that may be open at once.
        context: tokens a slot holds.
        modules: K, MCTP modules.
    """

    def __init__(self, slots: int, context: int, modules: int) -> None:
        self._context, self._modules = context, modules
        self._tokens: list[list[int]] = [[] for _ in range(slots)]  # that the backbone has run over
        self._cascaded = [0] * slots  # cascade rows that need no re-run
        self._open = [False] * slots

    def length(self, slot: int) -> int:
        """Positions that the backbone has cached."""
        return len(self._tokens[slot])

    def begin(self, slot: int, keep: int) -> tuple[Sequence[int], int]:
        """Open a slot and drop what it holds beyond `keep` tokens.

        Returns:
            The tokens kept, and the cascade rows that stay valid: row j of the last module has read token j + K.

        Raises:
            EngineError: the slot does not exist or is open, or `keep` is not what it holds; nothing has changed then.
        """
        if not 0 <= slot < len(self._open):
            raise EngineError(f"slot: {slot} is not valid: 0 to {len(self._open) - 1}")
        if self._open[slot]:
            raise EngineError(f"slot {slot} is open already; release it first")
        # A stream needs room for one token at least, so the last row of a full slot is never worth keeping.
        held = min(len(self._tokens[slot]), self._context - 1)
        if not 0 <= keep <= held:
            raise EngineError(f"keep: {keep} is not valid: slot {slot} holds {held} tokens; keep fewer, read the rest")
        self._open[slot] = True
        self._rewind(slot, keep)
        return self._tokens[slot], self._cascaded[slot]

    def release(self, slot: int) -> None:
        """Close a slot; what it holds stays. Raises EngineError when it is not open."""
        self._check_open(slot)
        self._open[slot] = False

    @contextmanager
    def extend(self, rows: Sequence[ExtendRow]) -> Iterator[None]:
        """Around a backbone step: rows may start anywhere in the cache, and what was behind their start is dropped.

        Raises:
            EngineError: a slot is not open, a row starts beyond what is cached or ends beyond the context.
        """
        for row in rows:
            self._check_cached(row.slot, row.start)
            if row.start + len(row.tokens) > self._context:
                raise EngineError(
                    f"slot {row.slot}: positions [{row.start}, {row.start + len(row.tokens)}) are not in "
                    f"[0, context {self._context})"
                )
        for row in rows:
            if row.start < len(self._tokens[row.slot]):
                self._rewind(row.slot, row.start)
        yield
        for row in rows:  # a step that failed has cached nothing
            self._tokens[row.slot].extend(row.tokens)

    @contextmanager
    def burst(self, rows: Sequence[BurstRow]) -> Iterator[None]:
        """Around a cascade.

        Raises:
            EngineError: there are no MCTP modules, a slot is not open, or rows lie beyond what the backbone has cached.
        """
        if not self._modules:
            raise EngineError("burst: this checkpoint has no MCTP modules (K = 0)")
        for row in rows:
            self._check_cached(row.slot, row.stop)
        without_gap = [row for row in rows if row.start <= self._cascaded[row.slot]]
        for row in without_gap:
            self._cascaded[row.slot] = row.start
        yield
        for row in without_gap:  # the rewind rule (docs/model.md, "The fused cascade")
            known = row.stop if row.index is None else row.stop + row.commit - self._modules
            self._cascaded[row.slot] = max(0, min(row.stop, known))

    def _rewind(self, slot: int, tokens: int) -> None:
        del self._tokens[slot][tokens:]
        self._cascaded[slot] = min(self._cascaded[slot], max(0, tokens - self._modules))

    def _check_open(self, slot: int) -> None:
        if not self._open[slot]:
            raise EngineError(f"slot {slot} is not open; begin a stream there first")

    def _check_cached(self, slot: int, needed: int) -> None:
        self._check_open(slot)
        if needed > len(self._tokens[slot]):
            raise EngineError(
                f"slot {slot}: {needed} cached positions are asked for, there are {len(self._tokens[slot])}; "
                "extend first"
            )


class SlotEngine:
    """The verbs of a `LanguageModelEngine` around an account of its slots; a family implements what they do inside.

    Args:
        slots, context: of the engine.
        mctp_modules, vocab_size: of the checkpoint.
        embedded_size: hidden size of a Plus checkpoint; 0 refuses rows of embeddings.
    """

    def __init__(self, slots: int, context: int, mctp_modules: int, vocab_size: int, embedded_size: int = 0) -> None:
        self.slots, self.context, self.embedded_size = slots, context, embedded_size
        self.mctp_modules, self.vocab_size = mctp_modules, vocab_size
        self.cached = CachedTokens(slots, context, mctp_modules)

    def begin(self, slot: int, sampling: Sampling, keep: int = 0) -> int:
        kept, cascaded = self.cached.begin(slot, keep)
        try:
            self._begin(slot, sampling, kept)
        except BaseException:  # the slot is free, as it was
            self.cached.release(slot)
            raise
        return cascaded

    def extend(self, rows: Sequence[ExtendRow]) -> list[int | None]:
        for row in rows:
            if row.embedded is not None:
                check_embedded(row.embedded, len(row.tokens), self.embedded_size)
        with self.cached.extend(rows):
            return self._extend(rows)

    def burst(self, rows: Sequence[BurstRow]) -> list[list[int]]:
        with self.cached.burst(rows):
            return self._burst(rows)

    def release(self, slot: int) -> None:
        self.cached.release(slot)

    def _begin(self, slot: int, sampling: Sampling, kept: Sequence[int]) -> None:
        """A stream samples so from now on; the repetition penalty applies to the ids `kept` of the slot's cache."""
        raise NotImplementedError

    def _extend(self, rows: Sequence[ExtendRow]) -> list[int | None]:
        raise NotImplementedError

    def _burst(self, rows: Sequence[BurstRow]) -> list[list[int]]:
        raise NotImplementedError
