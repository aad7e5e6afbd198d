"""The WAV writer: files that are valid at every moment, and the header of a stream for all that cannot seek."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vita_client.wav
from vita_client import InvalidRequest, WavWriter
from wav_files import read_wav

HEADER = struct.Struct("<4sI4s4sIHHIIHH4sI")


def header(rate_hz: int, riff_size: int, data_size: int) -> bytes:
    """The header of a WAV of one channel of 16 bit, written out by the RIFF specification."""
    form = (b"fmt ", 16, 1, 1, rate_hz, rate_hz * 2, 2, 16)
    return HEADER.pack(b"RIFF", riff_size, b"WAVE", *form, b"data", data_size)


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(0, 700), max_size=6))
def test_a_wav_file_is_whole_after_every_piece(tmp_path_factory: pytest.TempPathFactory, sizes: list[int]) -> None:
    path = tmp_path_factory.mktemp("wav") / "out.wav"
    written = np.zeros(0, np.int16)
    with WavWriter(path) as writer:
        assert read_wav(path)[1].size == 0
        for size in sizes:
            piece = np.arange(size, dtype=np.int16)
            writer.write(piece)
            written = np.concatenate([written, piece])
            rate_hz, samples = read_wav(path)
            assert rate_hz == 22_050
            np.testing.assert_array_equal(samples, written)
            assert path.stat().st_size == 44 + 2 * len(written)
    assert writer.samples == len(written)
    assert writer.seconds == len(written) / 22_050


def test_every_byte_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "out.wav"
    path.write_bytes(b"an older and longer file" * 10)
    with WavWriter(path) as writer:
        assert path.read_bytes() == header(22_050, 36, 0)
        writer.write(np.array([1, -2, 32767], np.int16))
        writer.write(np.array([[4, 5]], np.int16)[0, ::-1])
        assert path.read_bytes() == header(22_050, 46, 10) + struct.pack("<5h", 1, -2, 32767, 5, 4)
    assert path.stat().st_size == 54
    assert (writer.path, writer.samples, writer.seconds) == (str(path), 5, 5 / 22_050)
    with pytest.raises(ValueError, match="closed"):
        writer.write(np.zeros(1, np.int16))


def test_a_file_is_valid_between_samples_and_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.wav"
    writer = WavWriter(path)
    writer.write(np.arange(10, dtype=np.int16))
    write_header, seen = WavWriter._write_header, []

    def spy(self: WavWriter) -> None:
        seen.append((read_wav(path)[1].size, path.stat().st_size))
        write_header(self)
        seen.append((read_wav(path)[1].size, path.stat().st_size))

    monkeypatch.setattr(WavWriter, "_write_header", spy)
    writer.write(np.arange(5, dtype=np.int16))
    writer.close()
    assert seen == [(10, 74), (15, 74)]


def test_a_stream_has_one_header_and_reaches_its_reader_at_once(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with WavWriter(path) as writer:
        assert os.read(reader, 1000) == header(22_050, 2**32 - 1, 2**32 - 1)
        for value in (1, 2):
            writer.write(np.full(3, value, np.int16))
            assert os.read(reader, 1000) == struct.pack("<3h", value, value, value)
    assert os.read(reader, 1000) == b""
    os.close(reader)


def test_an_open_file_is_a_stream_and_stays_open() -> None:
    file = io.BytesIO()
    with WavWriter(file) as writer:
        writer.write(np.array([7], np.int16))
    assert file.getvalue() == header(22_050, 2**32 - 1, 2**32 - 1) + b"\x07\x00"
    assert writer.path == "-"


def test_a_reader_that_leaves_is_a_broken_pipe(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writer = WavWriter(path)
    os.close(reader)
    with pytest.raises(BrokenPipeError):
        writer.write(np.zeros(10_000, np.int16))
    writer.close()


def test_the_limit_of_the_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = vita_client.wav._MAX_SAMPLES
    assert 2 * limit + HEADER.size <= 2**32 - 1 < 2 * (limit + 1) + HEADER.size
    monkeypatch.setattr(vita_client.wav, "_MAX_SAMPLES", 10)
    with WavWriter(tmp_path / "out.wav") as writer:
        writer.write(np.zeros(10, np.int16))
        with pytest.raises(OSError, match="at most 4 GiB"):
            writer.write(np.zeros(1, np.int16))
    assert read_wav(tmp_path / "out.wav")[1].size == 10
    with WavWriter(io.BytesIO()) as stream:
        stream.write(np.zeros(11, np.int16))  # a stream has no limit


def test_a_wav_path_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"output: .*cannot be written"):
        WavWriter(tmp_path / "nowhere" / "out.wav")
