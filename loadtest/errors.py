"""The error of load tests: one line with the option, its value, the limit and the remedy."""

from __future__ import annotations

from vita_audio.contract.errors import VitaError


class LoadTestError(VitaError):
    """A load test cannot be run, or its result cannot be read, as asked."""


def wrong(option: str, value: object, limit: str, remedy: str = "") -> LoadTestError:
    """The error for one option."""
    return LoadTestError(f"{option}: {value!r} is not valid: {limit}" + (f"; {remedy}" if remedy else ""))
