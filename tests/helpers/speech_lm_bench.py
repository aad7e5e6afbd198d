"""The stage `speech_lm` on a language model that a test can hold back, and a client of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from language_models import request
from serving.admission import Admission, AdmissionRecord, Load
from serving.speech_lm_stage import SpeechLmStage
from vita_audio.contract.messages import Delta, Message, Probe, Start, Status
from vita_audio.engines.interface import BurstRow, ExtendRow, Sampling
from vita_audio.generation.service import GenerationService
from waiting import until


class GatedEngine:
    """A language model that waits before every step until the test lets it go on; tokens are positions."""

    mctp_modules, vocab_size, context, embedded_size = 10, 100_000, 5000, 0

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.gate = threading.Event()
        self.gate.set()

    def begin(self, slot: int, sampling: Sampling, keep: int = 0) -> int:
        return 0

    open = begin

    def release(self, slot: int) -> None: ...

    def extend(self, rows: Sequence[ExtendRow]) -> list[int | None]:
        assert self.gate.wait(20)
        return [None if row.index is None else row.start + len(row.tokens) for row in rows]

    def burst(self, rows: Sequence[BurstRow]) -> list[list[int]]:
        return [[row.stop + 1 + k for k in range(row.commit)] if row.index is not None else [] for row in rows]


class Bench:
    """A stage and a client of it."""

    def __init__(self, slots: int, queue: int) -> None:
        self.engine, self.record = GatedEngine(slots), AdmissionRecord(None)
        self.admission = Admission(self.record, slots, queue)
        self.stage = SpeechLmStage(GenerationService(self.engine, ()), self.admission)

    def start(self, tokens: int = 4, cancelled: bool = False) -> Answers:
        generation = request([5] * 3, (8192, 0), tokens)
        answers = Answers()
        self.stage.accept(Start(generation.settings, generation.prompt), answers, lambda: cancelled)
        return answers

    def send(self, message: Message) -> None:
        answers = Answers()
        self.stage.accept(message, answers)
        assert answers.sent == [None]
        assert answers.closed

    @property
    def load(self) -> Load:
        return self.admission.load()


class Answers:
    """What one request was answered; nothing may come after the last."""

    def __init__(self, fails: bool = False) -> None:
        self.sent: list[Delta | Probe | None] = []
        self.closed, self.fails = False, fails
        self.times: list[float] = []

    def __call__(self, message: Delta | Probe | None, final: bool) -> None:
        assert not self.closed
        self.closed = final
        self.sent.append(message)
        self.times.append(time.monotonic())
        if self.fails:
            raise ConnectionError("sender is gone")

    @property
    def deltas(self) -> list[Status]:
        return [message.status for message in self.sent if isinstance(message, Delta)]

    @property
    def probes(self) -> list[Probe]:
        return [message for message in self.sent if isinstance(message, Probe)]

    @property
    def complete(self) -> bool:
        return bool(self.deltas) and self.deltas[-1].final

    @property
    def stream(self) -> str:
        until(lambda: self.sent)
        return self.sent[0].stream if isinstance(self.sent[0], Probe) else self.deltas[0].stream
