"""The error of packing."""

from __future__ import annotations


class CannotPack(Exception):
    """One line that says what failed and what to do."""
