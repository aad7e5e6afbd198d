"""Sound files of any usual format as samples, by FFmpeg, within bounds of time and of what it may open."""

from __future__ import annotations

import io

import av
import numpy as np
from numpy.typing import NDArray

from vita_audio.contract.errors import InvalidRequest
from vita_audio.contract.limits import MAX_AUDIO_SECONDS
from vita_client.audio import load_speech

#: Formats of sound alone: FFmpeg also knows play lists, which would have it open files and addresses.
_DEMUXERS = "wav,mp3,flac,ogg,aac,mov,matroska,w64,aiff,caf"


def decode(file: bytes, field: str) -> NDArray[np.float32]:
    """A sound file as float32 [samples], mono, at 16 kHz. It computes: call it in a thread.

    Raises:
        InvalidRequest: `field`; it is empty, no sound file, or has more than 120 s.
    """
    if not file:
        raise InvalidRequest(field, "0 bytes", "it is empty", "send a sound file")
    try:
        samples, rate_hz = _read(file)
    except (av.FFmpegError, ValueError, EOFError) as error:
        limit = "it is not a sound file that can be read"
        remedy = "use WAV, FLAC, OGG, MP3, M4A or WebM"
        raise InvalidRequest(field, f"{len(file)} bytes", limit, remedy) from error
    try:
        return load_speech(samples, rate_hz)
    except InvalidRequest as error:
        raise InvalidRequest(field, error.value, error.limit, error.remedy) from error


def _read(file: bytes) -> tuple[NDArray[np.float32], int]:
    """Samples [samples, channels] and their rate in Hz; of a file that is too long its beginning, still too long."""
    options = {"format_whitelist": _DEMUXERS, "protocol_whitelist": "none"}
    pieces: list[NDArray[np.float32]] = []
    count, to_float = 0, av.AudioResampler("flt")
    with av.open(io.BytesIO(file), options=options) as container:
        stream = container.streams.audio[0] if container.streams.audio else None
        if stream is None:
            raise ValueError("no sound in it")
        rate_hz = stream.rate
        for frame in container.decode(stream):
            for piece in to_float.resample(frame):
                samples = piece.to_ndarray().reshape(-1, piece.layout.nb_channels).astype(np.float32, copy=False)
                pieces.append(samples)
                count, rate_hz = count + len(samples), piece.sample_rate
            if count > MAX_AUDIO_SECONDS * rate_hz:
                break
        return (np.concatenate(pieces) if pieces else np.zeros((0, 1), np.float32)), rate_hz
