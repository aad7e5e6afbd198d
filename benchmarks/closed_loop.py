"""Closed-loop callers: each sends its next request when the last one has ended."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loadtest.driver import Drive, Record
from vita_client import Client, build_request
from vita_client.audio import load_speech
from vita_client.request import Request

QUESTION = Path(__file__).resolve().parent.parent / "examples" / "question.wav"
#: Read aloud in turn.
SENTENCES = (
    "The train to the airport leaves every twenty minutes from the second platform.",
    "Please close the window before you go, because it may rain in the afternoon.",
    "She wrote a letter to her brother and put it under the blue cup on the table.",
    "We have bread, cheese and apples for breakfast, but the milk is finished.",
)
#: Sampled, so that answers differ; the seed makes them repeatable.
_SAMPLING: dict[str, Any] = {"temperature": 1.0, "top_k": 50}


@cache
def _question() -> NDArray[np.float32]:
    return load_speech(QUESTION)


def request_for(task: str, mode: str | None, seed: int, max_tokens: int) -> Request:
    """A spoken question (chat, asr), or a sentence to read aloud or to answer (tts, text)."""
    fields: dict[str, Any] = {"task": task, "mode": mode, "max_tokens": max_tokens, "seed": seed, **_SAMPLING}
    if task in ("tts", "text"):
        return build_request(SENTENCES[seed % len(SENTENCES)], **fields)
    return build_request(audio=_question(), **fields)


class Callers:
    """Callers on connections and threads of their own, from entering the context on; leaving it lets streams end.

    Args:
        request: caller and number of its request -> the request.
        requests: of each caller; None: until the context is left.
        pause_s: after an error, before the next request.

    Raises:
        Exception: on leaving, what ended a caller. A stream that fails is a record, not an exception.
    """

    def __init__(
        self,
        url: str,
        count: int,
        request: Callable[[int, int], Request],
        requests: int | None = None,
        timeout_s: float = 120.0,
        pause_s: float = 0.05,
    ) -> None:
        self._url, self._request, self._requests = url, request, requests
        self._timeout_s, self._pause_s = timeout_s, pause_s
        self._closing = threading.Event()
        self._records: list[Record] = []
        self._faults: list[BaseException] = []
        self._threads = [threading.Thread(target=self._run, args=(n,), daemon=True) for n in range(count)]

    @property
    def records(self) -> list[Record]:
        """Of the streams that have ended."""
        return list(self._records)

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *unused: object) -> None:
        if self._requests is None:
            self._closing.set()
        for thread in self._threads:
            thread.join()
        if self._faults:
            raise self._faults[0]

    def _run(self, caller: int) -> None:
        number = 0
        try:
            with Client(self._url) as client:
                while not self._closing.is_set() and number != self._requests:
                    record = Drive(self._request(caller, number), self._timeout_s).run(client)
                    self._records.append(record)
                    number += 1
                    if record.error:
                        self._closing.wait(self._pause_s)
        except BaseException as error:  # noqa: BLE001 - raised again on leaving, in the thread that waits
            self._faults.append(error)
