"""Asks a served system the cases of a suite, several at a time, and keeps each answer as soon as it is there.

A full server and one that restarts are waited for. A case that cannot be asked, or whose request fails, is written down
as skipped, with the reason; it is asked again when the command is.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import soundfile

from evaluation.case import Case
from evaluation.errors import EvaluationError
from evaluation.journal import Journal
from evaluation.requests import request_of
from loadtest.driver import Drive, Record
from vita_audio.contract.errors import InvalidRequest, VitaError
from vita_client import AsyncClient
from vita_client.errors import UNAVAILABLE
from vita_client.events import Collector, Metrics, Reply

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0


@dataclass(frozen=True, slots=True)
class Asking:
    """How cases are asked.

    Args:
        mode, max_tokens: None is the server's default.
        at_once: requests in flight.
        patience_s: how long no request may get through before the run ends.
        timeout_s: of one request.
    """

    url: str
    mode: str | None = None
    max_tokens: int | None = None
    at_once: int = 4
    patience_s: float = 300.0
    timeout_s: float = 300.0


def ask(asking: Asking, cases: Sequence[Case], journal: Journal, sounds: Path, done: Callable[[], None]) -> None:
    """Ask the cases of `left_to_ask`; `done` is called after each.

    Raises:
        EvaluationError: the server cannot be reached for `patience_s`, refuses this client, or a file cannot be
            written. The answers so far are kept.
    """
    asyncio.run(_Run(asking, journal, sounds, done).run(left_to_ask(cases, journal, sounds)))


def left_to_ask(cases: Sequence[Case], journal: Journal, sounds: Path) -> list[Case]:
    """Cases that have no answer yet, were skipped, have changed since, or whose answer's sound is gone."""

    def answered(case: Case) -> bool:
        entry = journal.entries.get(case.id, {})
        whole = "text" in entry and (not entry["sound"] or (sounds / entry["sound"]).is_file())
        return whole and entry.get("case") == case.digest

    return [case for case in cases if not answered(case)]


def sound_name(case_id: str) -> str:
    """File of an answer's sound; ids may hold any characters."""
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in case_id)[:80]
    return f"{plain}-{zlib.crc32(case_id.encode()):08x}.flac"


class _Run:
    def __init__(self, asking: Asking, journal: Journal, sounds: Path, done: Callable[[], None]) -> None:
        self._asking, self._journal, self._sounds, self._done = asking, journal, sounds, done
        self._through_s = time.monotonic()

    async def run(self, cases: Sequence[Case]) -> None:
        left = iter(cases)  # shared: each worker takes the next

        async def work() -> None:
            for case in left:
                digest = case.digest  # before its sound is read
                self._journal.add({**await self._answer(client, case), "case": digest})
                self._done()

        async with AsyncClient(self._asking.url) as client:
            workers = [asyncio.create_task(work()) for _ in range(self._asking.at_once)]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)

    async def _answer(self, client: AsyncClient, case: Case) -> dict[str, Any]:
        try:
            request = await asyncio.to_thread(request_of, case, self._asking.mode, self._asking.max_tokens)
        except VitaError as error:
            return _not_asked(case, error)
        pause_s = _FIRST_PAUSE_S
        while True:
            collector = Collector()
            drive = Drive(request, self._asking.timeout_s, collector.add)
            record = await drive.run_async(client)
            if drive.failure is None and record.responses:
                self._through_s = time.monotonic()
                return self._entry(case, record, collector.reply(None, Metrics()))
            code = drive.failure.code if drive.failure else "stream_broken"
            if code not in UNAVAILABLE:
                self._through_s = time.monotonic()
                if code == "access_denied":
                    raise EvaluationError(f"{drive.failure}; the answers so far are kept")
                return _skipped(case, f"the request failed: {code}", record.error)
            if time.monotonic() - self._through_s > self._asking.patience_s:
                waited = f"no request got through for {self._asking.patience_s:g} s ({drive.failure})"
                raise EvaluationError(f"{waited}; the answers so far are kept: run the same command again")
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _entry(self, case: Case, record: Record, reply: Reply) -> dict[str, Any]:
        sound = ""
        if case.task != "asr" and len(reply.pcm):
            sound = sound_name(case.id)
            try:
                self._sounds.mkdir(parents=True, exist_ok=True)
                soundfile.write(self._sounds / sound, reply.pcm, reply.sample_rate_hz)
            except (OSError, soundfile.SoundFileError) as error:
                raise EvaluationError(f"{self._sounds} cannot be written: {error}") from error
        return {
            "id": case.id,
            "text": reply.text,
            "sound": sound,
            "reason": record.reason,
            "tokens": len(reply.tokens),
            "total_ms": round(record.total_ms, 1),
            "first_audio_ms": None if record.ttfa_ms is None else round(record.ttfa_ms, 1),
            "real_time_factor": record.real_time_factor,
            "lm_ms": record.stages_ms.get("lm", 0.0),
        }


def _skipped(case: Case, why: str, detail: str) -> dict[str, Any]:
    """`why` is the same for all that were skipped alike; `detail` names file and value."""
    return {"id": case.id, "skipped": why, "detail": detail}


def _not_asked(case: Case, error: VitaError) -> dict[str, Any]:
    if case.audio is not None and not case.audio.is_file():
        return _skipped(case, "the sound is missing", f"{case.audio} is not there")
    limit = f": {error.limit}" if isinstance(error, InvalidRequest) else ""
    return _skipped(case, f"the request is not valid{limit}", str(error))
