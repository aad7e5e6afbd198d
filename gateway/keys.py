"""API keys: a file with a line for each, which holds the hash of the key, its name and its limits.

A key is 32 random bytes, so SHA-256 is enough: a slow hash protects passwords, which can be guessed; 2^256 keys cannot
be tried, and a slow hash would delay every request.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
import time
from dataclasses import dataclass, fields
from pathlib import Path

from gateway.errors import GatewayError
from vita_audio.contract.errors import InvalidRequest

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HASH = re.compile(r"sha256:([0-9a-f]{64})")
#: How often the file is looked at for changes.
_LOOK_AGAIN_S = 1.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one key; None: no limit. `streams` at the same time; minutes of sound that was made, by the hour and day."""

    streams: int | None = None
    minutes_per_hour: float | None = None
    minutes_per_day: float | None = None


@dataclass(frozen=True, slots=True)
class Key:
    """A caller, by the name of its key."""

    name: str
    digest: bytes = b""
    limits: Limits = Limits()


#: Of callers where no keys are asked for.
ANYONE = Key("anyone")


def new_key(name: str, limits: Limits) -> tuple[str, str]:
    """A new key, which is not kept anywhere, and its line for the file.

    Raises:
        InvalidRequest: field NAME, or a limit.
    """
    if not _NAME.fullmatch(name):
        raise InvalidRequest("NAME", name, "it has 1 to 64 letters, digits, '.', '_' and '-'")
    key = f"vita-{secrets.token_urlsafe(32)}"
    given = {field.name: getattr(limits, field.name) for field in fields(Limits)}
    words = [_written(field, value) for field, value in given.items() if value is not None]
    return key, " ".join([name, f"sha256:{_digest(key).hex()}", *words])


def _written(field: str, value: float) -> str:
    """A limit as it stands in a line. Raises InvalidRequest: it cannot stand there."""
    text = str(value).removesuffix(".0")
    if not _number(field, text):
        raise InvalidRequest(field, value, f"it is {_allowed(field)}")
    return f"{field}={text}"


def add_key(path: Path, name: str, limits: Limits) -> str:
    """Make a key and write its line to the end of the file, which is made if there is none. Returns the key.

    Raises:
        InvalidRequest: field NAME, a limit, or `keys` for a file that cannot be read or written.
    """
    if path.exists() and any(key.name == name for key in read_keys(path)):
        raise InvalidRequest("NAME", name, f"{path} has a key of this name", "remove its line first")
    key, line = new_key(name, limits)
    try:
        with open(os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600), "a+b") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
            begin = "" if file.read() in (b"", b"\n") else "\n"  # a last line may have no end
            file.write(f"{begin}{line}\n".encode())
    except OSError as error:
        raise InvalidRequest("keys", str(path), f"it cannot be written ({error.strerror})") from error
    return key


def read_keys(path: Path) -> list[Key]:
    """The keys of a file.

    Raises:
        InvalidRequest: field `keys`; names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8"
        raise InvalidRequest("keys", str(path), f"it cannot be read ({why})") from error
    keys: list[Key] = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            keys.append(_parse(line))
        except ValueError as error:  # never the line itself: someone may have put a key there
            raise InvalidRequest("keys", f"{path}, line {number}", str(error), "vita-gateway key makes lines") from None
    if len({key.name for key in keys}) < len(keys):
        raise InvalidRequest("keys", str(path), "two lines have the same name", "rename or remove one")
    return keys


def _parse(line: str) -> Key:
    """A line. Raises ValueError."""
    name, *words = line.split()
    match = _HASH.fullmatch(words.pop(0)) if words else None
    if not _NAME.fullmatch(name) or match is None:
        raise ValueError("a line is NAME sha256:HASH [streams=N] [minutes_per_hour=N] [minutes_per_day=N]")
    given: dict[str, float] = {}
    for word in words:
        field, _, value = word.partition("=")
        if field not in {each.name for each in fields(Limits)} or field in given:
            raise ValueError(f"{field[:40]!r} is no limit, or is there twice")
        if not (number := _number(field, value)):
            raise ValueError(f"{field} is {_allowed(field)}")
        given[field] = number
    streams = given.pop("streams", None)
    return Key(name, bytes.fromhex(match[1]), Limits(None if streams is None else int(streams), **given))


def _number(field: str, text: str) -> float:
    """The value of a limit; 0: it is none."""
    number = float(text) if re.fullmatch(r"\d{1,9}(\.\d+)?", text) else 0.0
    return 0.0 if field == "streams" and number != int(number) else number


def _allowed(field: str) -> str:
    return "a number above 0" + (", a whole one" if field == "streams" else "") + ", of at most 9 digits"


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


class KeyFile:
    """The keys of a file. It is read again when it changes: a key can be added or taken away while the gateway runs."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp, self._keys = self._read()
        self._look_again_s = time.monotonic() + _LOOK_AGAIN_S

    def find(self, presented: str | None) -> Key:
        """The key that a caller presents.

        Raises:
            GatewayError: it presents none, or one that is not in the file.
        """
        if presented is None:
            raise GatewayError("an API key is needed: send it as Authorization: Bearer KEY", code="invalid_api_key")
        self._refresh()
        digest, found = _digest(presented), None
        for key in self._keys:  # all of them, so that the time says nothing
            if hmac.compare_digest(key.digest, digest):
                found = key
        if found is None:
            raise GatewayError("this API key is not valid", code="invalid_api_key")
        return found

    def _read(self) -> tuple[tuple[int, int, int] | None, list[Key]]:
        return self._state(), read_keys(self._path)

    def _state(self) -> tuple[int, int, int] | None:
        try:
            state = self._path.stat()
        except OSError:
            return None
        return state.st_ino, state.st_size, state.st_mtime_ns

    def _refresh(self) -> None:
        """A file that cannot be read leaves the keys as they are."""
        if time.monotonic() < self._look_again_s:
            return
        self._look_again_s = time.monotonic() + _LOOK_AGAIN_S
        if (stamp := self._state()) == self._stamp:
            return
        self._stamp = stamp
        try:
            self._stamp, self._keys = self._read()
            _log.info("keys read again", extra={"keys": len(self._keys)})
        except InvalidRequest as error:
            _log.error("the keys stay as they were: %s", error)
