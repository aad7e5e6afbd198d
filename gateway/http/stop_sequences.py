"""Where a text that streams has to end: before the first of its stop sequences."""

from __future__ import annotations

from collections.abc import Sequence


class StopSequences:
    """Passes a text on, up to the sequence that is complete first; what may be the beginning of one is held back.

    Args:
        sequences: none of them empty.

    Attributes:
        found: the text has ended.
    """

    def __init__(self, sequences: Sequence[str]) -> None:
        self._sequences, self._held = sequences, ""
        self.found = False

    def push(self, text: str) -> str:
        """The next piece; what of the text is certain."""
        text = self._held + text
        places = [(place + len(each), place) for each in self._sequences if (place := text.find(each)) >= 0]
        if places:
            self.found, self._held = True, ""
            return text[: min(places)[1]]
        certain = len(text) - self._begun(text)
        self._held = text[certain:]
        return text[:certain]

    def finish(self) -> str:
        """The text is complete: what was held back."""
        held, self._held = self._held, ""
        return held

    def _begun(self, text: str) -> int:
        """How many of the last characters begin a sequence."""
        most = [(each, min(len(each) - 1, len(text))) for each in self._sequences]
        return max((n for each, longest in most for n in range(longest, 0, -1) if text.endswith(each[:n])), default=0)
