"""Admission: never more streams than slots + queue, none leaked, the same for every process that asks."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from serving import admission
from serving.admission import Admission, AdmissionRecord, Load
from vita_audio.contract.errors import ServerFull, ServerStopping


class AnyOrder(RuleBasedStateMachine):
    """Any interleaving of what speech_lm does to a stream, against a dictionary of streams and states."""

    @initialize(slots=st.integers(1, 3), queue=st.integers(0, 3))
    def start(self, slots: int, queue: int) -> None:
        self.slots, self.limit = slots, slots + queue
        self.record = AdmissionRecord(None)
        self.admission = Admission(self.record, slots, queue)
        self.known: dict[str, bool] = {}  # stream -> decoding
        self.gone = ["never admitted"]

    @rule()
    def admit(self) -> None:
        if len(self.known) < self.limit:
            self.known[self.admission.admit()] = False
        else:
            with pytest.raises(ServerFull, match=rf"{self.running + self.decoding} running, {self.waiting} waiting"):
                self.admission.admit()

    @rule(data=st.data())
    @precondition(lambda self: self.known)
    def tokens_complete(self, data: st.DataObject) -> None:
        stream = data.draw(st.sampled_from(sorted(self.known)))
        assert self.admission.start_decoding(stream) is not self.known[stream]
        self.known[stream] = True

    @rule(data=st.data())
    @precondition(lambda self: self.known)
    def end(self, data: st.DataObject) -> None:
        """Released, cancelled or failed, in any state."""
        stream = data.draw(st.sampled_from(sorted(self.known)))
        assert self.admission.release(stream)
        del self.known[stream]
        self.gone.append(stream)

    @rule(data=st.data())
    def late_message(self, data: st.DataObject) -> None:
        stream = data.draw(st.sampled_from(self.gone))
        assert not self.admission.start_decoding(stream)
        assert not self.admission.release(stream)

    @property
    def decoding(self) -> int:
        return sum(self.known.values())

    @property
    def running(self) -> int:
        return min(self.slots, len(self.known) - self.decoding)

    @property
    def waiting(self) -> int:
        return len(self.known) - self.decoding - self.running

    @invariant()
    def every_stream_counts_once(self) -> None:
        load = self.admission.load()
        assert load == Load(self.running, self.waiting, self.decoding)
        assert 0 <= load.taken == len(self.known) <= self.limit
        if load.taken == self.limit:
            with pytest.raises(ServerFull):
                self.record.check()
        else:
            self.record.check()


TestAnyOrder = AnyOrder.TestCase


@given(st.integers(1, 5), st.integers(0, 5))
def test_exactly_slots_and_queue_are_admitted(slots: int, queue: int) -> None:
    admission = Admission(AdmissionRecord(None), slots, queue)
    streams = {admission.admit() for _ in range(slots + queue)}
    assert len(streams) == slots + queue
    with pytest.raises(ServerFull, match=rf"server is full \({slots} running, {queue} waiting\)"):
        admission.admit()
    for stream in streams:
        admission.release(stream)
    assert admission.load().taken == 0


def test_ids_cannot_be_guessed() -> None:
    admission = Admission(AdmissionRecord(None), 2, 0)
    first, second = admission.admit(), admission.admit()
    assert first.partition("-")[2] != second.partition("-")[2]
    assert len(first.partition("-")[2]) == 16


READER = """
import sys
from pathlib import Path
from serving.admission import AdmissionRecord
AdmissionRecord(Path(sys.argv[1])).check()
"""


def test_other_processes_see_that_it_is_full_and_that_it_drains(tmp_path: Path) -> None:
    path = tmp_path / "admission"

    def ask() -> str:
        done = subprocess.run([sys.executable, "-c", READER, str(path)], capture_output=True, text=True, check=False)
        return done.stderr.strip().rpartition(".")[2]

    launcher = AdmissionRecord(path)
    assert ask() == ""
    deciding = Admission(AdmissionRecord(path), 1, 1)
    streams = [deciding.admit(), deciding.admit()]
    assert ask() == "ServerFull: server is full (1 running, 1 waiting)"
    deciding.start_decoding(streams[0])
    assert ask() == "ServerFull: server is full (2 running, 0 waiting)"
    deciding.release(streams[0])
    assert ask() == ""
    launcher.drain()
    assert ask().startswith("ServerStopping: server is shutting down")
    with pytest.raises(ServerStopping):
        deciding.admit()
    assert path.stat().st_size == 40


def test_a_record_that_is_not_refreshed_says_nothing_of_full(monkeypatch: pytest.MonkeyPatch) -> None:
    record = AdmissionRecord(None)
    deciding = Admission(record, 1, 0)
    deciding.admit()
    monkeypatch.setattr(admission, "STALE_S", 0.02)
    time.sleep(0.05)
    record.check()
    deciding.refresh()
    with pytest.raises(ServerFull):
        record.check()


def test_a_new_process_starts_with_an_empty_server(tmp_path: Path) -> None:
    path = tmp_path / "admission"
    Admission(AdmissionRecord(path), 1, 0).admit()
    with pytest.raises(ServerFull):
        AdmissionRecord(path).check()
    Admission(AdmissionRecord(path), 1, 0)
    AdmissionRecord(path).check()


@pytest.mark.parametrize("content", [b"", b"\x00", b"\x00" * 1000])
def test_a_file_of_any_size_is_made_to_fit(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "admission").write_bytes(content)
    AdmissionRecord(tmp_path / "admission").check()
    assert (tmp_path / "admission").stat().st_size == 40


def test_a_record_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        AdmissionRecord(tmp_path / "none" / "admission")


def test_streams_whose_sound_takes_too_long_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long answer has longer: four times what its sound lasts, besides a minute."""
    now = [1000.0]
    monkeypatch.setattr(admission.time, "monotonic", lambda: now[0])
    deciding = Admission(AdmissionRecord(None), 3, 0)
    short, long, _ = (deciding.admit() for _ in range(3))
    deciding.start_decoding(short)
    deciding.start_decoding(long, tokens=1000)  # 80 s of sound
    for now[0], overdue in ((1059.0, []), (1061.0, [short]), (1379.0, [short]), (1381.0, [short, long])):
        assert deciding.overdue() == overdue
    assert deciding.load() == Load(1, 0, 2)
