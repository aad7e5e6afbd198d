"""Decoding modes: which generated tokens come from the backbone and which from MCTP modules.

A mode is a list m1,n1,m2,n2,...: m1 backbone tokens, n1 MCTP tokens, m2 backbone tokens, ...; the last pair repeats for
ever (docs/model.md, "Modes"). Imports only the standard library: the client uses it too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vita_audio.contract.errors import InvalidRequest

NAMED_MODES: dict[str, tuple[int, ...]] = {
    "vanilla": (8192, 0),
    "balance": (1, 4, 3, 8, 4, 10),
    "boost": (1, 10, 4, 10),
    "turbo": (1, 10),
}

#: Bounds of a pattern that a request may carry.
MAX_PATTERN_NUMBERS = 64
MAX_PATTERN_NUMBER = 65_536

_FIELD = "MODE"
_NUMBERS = re.compile(r"\s*[0-9]{1,9}\s*(,\s*[0-9]{1,9}\s*)*")
#: What MODE may be, in words.
MODE_WORDS = f'{", ".join(NAMED_MODES)} or pairs such as "1,10,4,10"'
_REMEDY = f"use {MODE_WORDS}"


@dataclass(frozen=True, slots=True)
class Mode:
    """A checked decoding pattern. `name` is one of the four names, or the numbers joined by commas."""

    name: str
    pattern: tuple[int, ...]

    def segments(self) -> Iterator[tuple[int, int]]:
        """Endless (backbone tokens m >= 1, MCTP tokens n >= 0) pairs; the last pair repeats."""
        pairs = list(zip(self.pattern[::2], self.pattern[1::2], strict=True))
        yield from pairs
        while True:
            yield pairs[-1]


def parse_mode(text: str, mctp_modules: int | None = None) -> Mode:
    """Read a mode name (any case) or a pattern "m1,n1,m2,n2,...".

    Args:
        text: what the user sent.
        mctp_modules: K of the model that will run it, or None when it is not known (the client).

    Raises:
        InvalidRequest: field MODE; unknown name, odd length, m < 1, n > K, or out of bounds.
    """
    name = text.strip().lower()
    if name in NAMED_MODES:
        return mode_of(NAMED_MODES[name], mctp_modules, shown=text)
    if not name:
        raise InvalidRequest(_FIELD, text, "it is empty", _REMEDY)
    if len(name) > 16 * MAX_PATTERN_NUMBERS or not _NUMBERS.fullmatch(name):
        raise InvalidRequest(_FIELD, text, "it is neither the name of a mode nor a pattern", _REMEDY)
    return mode_of([int(number) for number in name.split(",")], mctp_modules, shown=text)


def mode_of(pattern: Sequence[int], mctp_modules: int | None = None, shown: object = None) -> Mode:
    """Check a pattern of numbers [m1, n1, m2, n2, ...] (`mtp_inference_mode` of generation_config.json has this form).

    `shown` is what an error quotes, when the user wrote it in another form.

    Raises:
        InvalidRequest: field MODE, as `parse_mode`.
    """
    numbers = tuple(pattern)

    def wrong(limit: str, remedy: str = _REMEDY) -> InvalidRequest:
        return InvalidRequest(_FIELD, numbers if shown is None else shown, limit, remedy)

    if not 2 <= len(numbers) <= MAX_PATTERN_NUMBERS:
        raise wrong(f"a pattern has 2 to {MAX_PATTERN_NUMBERS} numbers, not {len(numbers)}")
    if len(numbers) % 2:
        raise wrong(f"a pattern is made of pairs m,n but has {len(numbers)} numbers")
    if max(numbers) > MAX_PATTERN_NUMBER:
        raise wrong(f"{max(numbers)} is more than {MAX_PATTERN_NUMBER}", "use smaller numbers")
    for m, n in zip(numbers[::2], numbers[1::2], strict=True):
        if m < 1:
            raise wrong(f"each pair m,n needs at least 1 backbone token, not {m}", "set every m to 1 or more")
        if n < 0:
            raise wrong(f"n may not be negative ({n})", "set every n to 0 or more")
        if mctp_modules is not None and n > mctp_modules:
            limit = f"it asks for {n} MCTP tokens in a row but this model has K = {mctp_modules} MCTP modules"
            raise wrong(limit, f"use vanilla or a pattern with every n at most {mctp_modules}")
    return Mode(_name_of(numbers), numbers)


def _name_of(pattern: tuple[int, ...]) -> str:
    for name, known in NAMED_MODES.items():
        if known == pattern:
            return name
    return ",".join(map(str, pattern))
