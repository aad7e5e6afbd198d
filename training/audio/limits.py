"""Checks of the audio trainings' settings: one error names every value that is out of its range."""

from __future__ import annotations

from training.errors import TrainingError


def check_settings(settings: object, whole: dict[str, int], shares: tuple[str, ...], weights: tuple[str, ...]) -> None:
    """Check fields of a settings object.

    Args:
        whole: smallest value of each of these whole numbers.
        shares: numbers from 0 to 1.
        weights: numbers that are not negative.

    Raises:
        TrainingError: one line for each faulty field, with its value and limit.
    """
    values = {name: getattr(settings, name) for name in (*whole, *shares, *weights)}
    faults = [
        f"{name}: {values[name]} must be at least {least}" for name, least in whole.items() if values[name] < least
    ]
    faults += [f"{name}: {values[name]} must be from 0 to 1" for name in shares if not 0 <= values[name] <= 1]
    faults += [f"{name}: {values[name]} must not be negative" for name in weights if values[name] < 0]
    if faults:
        raise TrainingError("\n".join(faults))
