"""Chromium with a sound file as its microphone, and what a page in it says, sends and receives."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from playwright.sync_api import Browser, Page, Playwright, WebSocket

from realtime_session import question

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"),
    *("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"),
)


@contextmanager
def chromium(playwright: Playwright, microphone: Path | None = None) -> Iterator[Browser]:
    """The machine's own Chromium; `microphone`: a WAV file that is heard again and again."""
    flags = [*_FLAGS, *([] if microphone is None else [f"--use-file-for-fake-audio-capture={microphone}"])]
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
    try:
        yield browser
    finally:
        browser.close()


def question_and_silence(path: Path, silence_s: float) -> Path:
    """A WAV file of 1.9 s of speech, and silence after it."""
    soundfile.write(path, np.concatenate([question(), np.zeros(int(silence_s * 16_000), np.float32)]), 16_000)
    return path


class Visit:
    """A page that was opened, and everything that went over its WebSocket, in order; faults end a test by `check`."""

    def __init__(self, browser: Browser, address: str, **options: Any) -> None:
        self.page: Page = browser.new_page(**options)
        self.sent: list[dict[str, Any]] = []
        self.received: list[dict[str, Any]] = []
        self._address, self._faults = address, list[str]()
        self.page.on("websocket", self._on_websocket)
        self.page.on("pageerror", lambda error: self._faults.append(f"error: {error}"))
        self.page.on("console", lambda told: told.type == "error" and self._faults.append(f"console: {told.text}"))
        self.page.on("request", lambda request: self._check_address(request.url))
        self.page.goto(address)
        self.wait("document.getElementById('state').textContent !== 'Starting…'")

    def type(self, text: str) -> None:
        self.page.fill("#text", text)
        self.page.press("#text", "Enter")

    def wait(self, condition: str, seconds: float = 30) -> None:
        """Until a JavaScript expression holds. Playwright's own waiting is forbidden by the policy of the page."""
        deadline_s = time.monotonic() + seconds
        while not self.page.evaluate(condition):
            assert time.monotonic() < deadline_s, f"never: {condition}; the page says: {self.page.inner_text('body')}"
            self.page.wait_for_timeout(20)

    def state(self, text: str, seconds: float = 30) -> None:
        """Until the line at the top says so."""
        self.wait(f"document.getElementById('state').textContent === {json.dumps(text)}", seconds)

    def log(self, role: str) -> list[tuple[str, str]]:
        """Text and small line of each entry."""
        script = "entries => entries.map(entry => [entry.children[0].textContent, entry.children[1].textContent])"
        found: list[list[str]] = self.page.eval_on_selector_all(f"article.{role}", script)
        return [(text, small) for text, small in found]

    def problem(self) -> str:
        return self.page.inner_text("#problem span") if self.page.is_visible("#problem") else ""

    def of(self, events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
        return [event for event in events if event["type"] == kind]

    def check(self, *expected: str) -> None:
        """No error in the page but those with one of these words, and nothing was asked of another machine."""
        assert [fault for fault in self._faults if not any(words in fault for words in expected)] == []

    def _on_websocket(self, socket: WebSocket) -> None:
        self._check_address(socket.url.replace("ws", "http", 1))
        socket.on("framesent", lambda text: self.sent.append(json.loads(text)))
        socket.on("framereceived", lambda text: self.received.append(json.loads(text)))

    def _check_address(self, address: str) -> None:
        if not address.startswith(self._address):
            self._faults.append(f"another machine: {address}")
