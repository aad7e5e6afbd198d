"""Standard input of the command line: bytes, which are text in UTF-8 whatever the locale says."""

from __future__ import annotations

import sys
from typing import BinaryIO

from vita_audio.contract.errors import InvalidRequest


def standard_input(field: str) -> BinaryIO:
    """Standard input, to be read for a field.

    Raises:
        InvalidRequest: that field; standard input is closed.
    """
    if sys.stdin is None:
        raise InvalidRequest(field, "-", "standard input is closed", "name a file, or pipe it in")
    return sys.stdin.buffer


def decoded(text: bytes) -> str:
    """Text that came from standard input.

    Raises:
        InvalidRequest: field TEXT; it is not UTF-8.
    """
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest("TEXT", "standard input", f"it is not UTF-8 at byte {error.start}") from error
