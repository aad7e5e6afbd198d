"""Sound files of any usual format as samples, by FFmpeg, within bounds of time and of what it may open."""

from __future__ import annotations

import io

import av
import numpy as np
import soxr
from numpy.typing import NDArray

from vita_audio.contract.errors import InvalidRequest
from vita_audio.contract.limits import MAX_AUDIO_SECONDS
from vita_audio.contract.rates import INPUT_SAMPLE_RATE_HZ
from vita_audio.contract.request import check_field
from vita_client.audio import load_speech

#: Formats of sound alone: FFmpeg also knows play lists, which would have it open files and addresses.
_DEMUXERS = "wav,mp3,flac,ogg,aac,mov,matroska,w64,aiff,caf"
#: A few KB of FLAC may hold minutes of silence of any number of channels: 7.1 is the most that is read of them.
_MAX_CHANNELS = 8


def decode(file: bytes, field: str, longest_s: float = MAX_AUDIO_SECONDS) -> NDArray[np.float32]:
    """A sound file as float32 [samples], mono, at 16 kHz. It computes: call it in a thread.

    Args:
        longest_s: of what may still come, where there were other files before it.

    Raises:
        InvalidRequest: `field`; it is empty, no sound file, has too many channels, another rate, or is too long.
    """
    if not file:
        raise InvalidRequest(field, "0 bytes", "it is empty", "send a sound file")
    try:
        return load_speech(_read(file, longest_s))
    except InvalidRequest as error:
        raise InvalidRequest(field, error.value, error.limit, error.remedy) from error
    except (av.FFmpegError, ValueError, EOFError) as error:
        limit = "it is not a sound file that can be read"
        remedy = "use WAV, FLAC, OGG, MP3, M4A or WebM"
        raise InvalidRequest(field, f"{len(file)} bytes", limit, remedy) from error


def _read(file: bytes, longest_s: float) -> NDArray[np.float32]:
    """Samples [samples, channels] at 16 kHz. They are resampled as they come: less is held than the file may have.

    Raises:
        InvalidRequest: its rate, its channels, or its length.
    """
    options = {"format_whitelist": _DEMUXERS, "protocol_whitelist": "none"}
    pieces: list[NDArray[np.float32]] = []
    left_s, to_float, to_rate = longest_s, av.AudioResampler("flt"), None
    with av.open(io.BytesIO(file), options=options) as container:
        stream = container.streams.audio[0] if container.streams.audio else None
        if stream is None:
            raise ValueError("no sound in it")
        for frame in container.decode(stream):
            rate_hz, channels = check_field("SAMPLE_RATE", frame.sample_rate), frame.layout.nb_channels
            if channels > _MAX_CHANNELS:
                limit = f"at most {_MAX_CHANNELS} are read"
                raise InvalidRequest("AUDIO", f"{channels} channels", limit, "mix it to mono")
            left_s -= frame.samples / rate_hz
            if left_s < -1e-6:  # many small numbers do not add up exactly
                limit = f"at most {MAX_AUDIO_SECONDS:g} s are taken"
                raise InvalidRequest("AUDIO", f"more than {longest_s:g} s", limit, "cut it")
            if to_rate is None and rate_hz != INPUT_SAMPLE_RATE_HZ:
                to_rate = soxr.ResampleStream(rate_hz, INPUT_SAMPLE_RATE_HZ, channels, dtype="float32")
            for piece in to_float.resample(frame):
                samples = piece.to_ndarray().reshape(-1, channels).astype(np.float32, copy=False)
                pieces.append(samples if to_rate is None else to_rate.resample_chunk(samples))
        if to_rate is not None and pieces:
            pieces.append(to_rate.resample_chunk(np.zeros((0, pieces[0].shape[1]), np.float32), last=True))
        return np.concatenate(pieces) if pieces else np.zeros((0, 1), np.float32)
