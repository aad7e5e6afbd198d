"""Seals of the messages between the models of one server.

Triton lets any client call any model, and no model can see whether a request comes from the ensemble or from a client
(docs/triton.md, "Security"). So a message carries a MAC under a secret that each start of the server makes anew, and
that only its model processes get, in their environment. What has no right seal is refused before it is read.

A seal is SEAL_BYTES of hexadecimal text: MAC (HMAC-SHA-256, 128 bits), time (CLOCK_MONOTONIC, one for all processes of
a machine), nonce.
"""

from __future__ import annotations

import hmac
import secrets
import time
from collections import OrderedDict

from vita_audio.contract.errors import BadMessage, EngineError

#: Of a start's secret, as hexadecimal text in the environment.
SECRET_BYTES = 32
_MAC_BYTES, _TIME_BYTES, _NONCE_BYTES = 16, 8, 8
SEAL_BYTES = 2 * (_MAC_BYTES + _TIME_BYTES + _NONCE_BYTES)
#: What is sealed together, but for embeddings. Checked before anything is hashed: 120 s of speech at 16 kHz and the
#: longest prompt fit.
MAX_BYTES = 8 << 20
#: A message is on its way for milliseconds; a model process that stands still for longer is ended.
MAX_AGE_S = 30.0
REFUSAL = "this model takes messages of this server's own models only: send requests to vita_audio"

_VERSION = b"vita seal 2\n"


def new_secret() -> str:
    """A secret for one start of a server."""
    return secrets.token_hex(SECRET_BYTES)


class Seal:
    """Seals and checks; `seal` from any thread, `open` from one.

    Args:
        secret: of this start of the server, from `new_secret`.
        once: accept each seal once. For a model whose messages a client can come by: `prompt`, called directly,
            answers with a Start.
        most_bytes: opened at once.

    Raises:
        EngineError: the secret is missing or too short.
    """

    def __init__(self, secret: str, once: bool = False, most_bytes: int = MAX_BYTES) -> None:
        try:
            self._secret = bytes.fromhex(secret)
        except ValueError:
            self._secret = b""
        if len(self._secret) < SECRET_BYTES:
            raise EngineError(f"VITA_SECRET is not {SECRET_BYTES} bytes in hexadecimal: start with `python -m server`")
        self._once, self._most_bytes = once, most_bytes
        self._opened: OrderedDict[bytes, float] = OrderedDict()  # MAC -> when it was opened

    def seal(self, text: bytes, payload: bytes = b"", rows: bytes = b"") -> bytes:
        """`text` with its seal before it; `payload` and `rows` travel elsewhere and are sealed with it."""
        head = (time.monotonic_ns().to_bytes(_TIME_BYTES, "big") + secrets.token_bytes(_NONCE_BYTES)).hex().encode()
        return self._mac(head, text, payload, rows) + head + text

    def open(self, sealed: bytes, payload: bytes = b"", rows: bytes = b"", most_age_s: float = MAX_AGE_S) -> bytes:
        """The text that was sealed together with `payload` and `rows`.

        Args:
            most_age_s: of the seal; without a limit for what no client comes by.

        Raises:
            BadMessage: REFUSAL; there is no right seal, or it is too old, or was opened before.
        """
        mac, head = sealed[: 2 * _MAC_BYTES], sealed[2 * _MAC_BYTES : SEAL_BYTES]
        text = sealed[SEAL_BYTES:]
        if len(mac) + len(head) < SEAL_BYTES or len(text) + len(payload) + len(rows) > self._most_bytes:
            raise BadMessage(REFUSAL)
        if not hmac.compare_digest(mac, self._mac(head, text, payload, rows)):
            raise BadMessage(REFUSAL)
        now = time.monotonic()
        if now - int(head[: 2 * _TIME_BYTES], 16) / 1e9 > most_age_s:
            raise BadMessage(REFUSAL)
        if self._once:
            self._remember(mac, now)
        return text

    def _remember(self, mac: bytes, now: float) -> None:
        opened = self._opened
        while opened and now - next(iter(opened.values())) > MAX_AGE_S:
            opened.popitem(last=False)
        if mac in opened:
            raise BadMessage(REFUSAL)
        opened[mac] = now

    def _mac(self, head: bytes, text: bytes, payload: bytes, rows: bytes) -> bytes:
        lengths = len(text).to_bytes(8, "big") + len(payload).to_bytes(8, "big")
        made = hmac.new(self._secret, digestmod="sha256")
        for part in (_VERSION, head, lengths, text, payload, rows):  # one by one: rows of a history are not copied
            made.update(part)
        return made.digest()[:_MAC_BYTES].hex().encode()
