"""Checks of settings: one error names every value that is out of its range."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from training.errors import TrainingError


def check_settings(
    settings: object, whole: Mapping[str, int], shares: Iterable[str], weights: Iterable[str] = ()
) -> None:
    """Check fields of a settings object.

    Args:
        whole: smallest value of each of these whole numbers.
        shares: numbers from 0 to 1.
        weights: numbers that are not negative.

    Raises:
        TrainingError: one line for each faulty field, with its value and limit.
    """
    ranges = {
        **{name: (least, None) for name, least in whole.items()},
        **dict.fromkeys(shares, (0, 1)),
        **dict.fromkeys(weights, (0, None)),
    }
    if faults := range_faults(settings, ranges):
        raise TrainingError("\n".join(faults))


def range_faults(settings: object, ranges: Mapping[str, tuple[float, float | None]]) -> list[str]:
    """A line for each field, a number or a pair low <= high, that is not within (least, most); None is no limit."""
    faults = []
    for name, (least, most) in ranges.items():
        value = getattr(settings, name)
        ordered = value if isinstance(value, tuple) else (value,)
        limit = f"at least {least:g}" if most is None else f"from {least:g} to {most:g}"
        if len(ordered) > 1:
            limit = f"a pair low <= high {limit}"
        if list(ordered) != sorted(ordered) or ordered[0] < least or (most is not None and ordered[-1] > most):
            faults.append(f"{name}: {value} must be {limit}")
    return faults
