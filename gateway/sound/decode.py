"""Sound files of any usual format as samples, by FFmpeg, within bounds of time and of what it may open."""

from __future__ import annotations

import io

import av
import numpy as np
from numpy.typing import NDArray

from vita_audio.contract.errors import InvalidRequest
from vita_audio.contract.limits import MAX_AUDIO_SECONDS
from vita_audio.contract.rates import INPUT_SAMPLE_RATE_HZ

#: Formats of sound alone: FFmpeg also knows play lists, which would have it open files and addresses.
_DEMUXERS = "wav,mp3,flac,ogg,aac,mov,matroska,w64,aiff,caf"
_MAX_SAMPLES = int(MAX_AUDIO_SECONDS * INPUT_SAMPLE_RATE_HZ)


def decode(file: bytes, field: str) -> NDArray[np.float32]:
    """A sound file as float32 [samples], mono, at 16 kHz. It computes: call it in a thread.

    Raises:
        InvalidRequest: `field`; it is empty, no sound file, or has more than 120 s.
    """
    if not file:
        raise InvalidRequest(field, "0 bytes", "it is empty", "send a sound file")
    options = {"format_whitelist": _DEMUXERS, "protocol_whitelist": "none"}
    resampler = av.AudioResampler("flt", "mono", INPUT_SAMPLE_RATE_HZ)
    pieces, samples = [np.zeros(0, np.float32)], 0
    try:
        with av.open(io.BytesIO(file), options=options) as container:
            if not container.streams.audio:
                raise InvalidRequest(field, f"{len(file)} bytes", "there is no sound in the file")
            for frame in container.decode(container.streams.audio[0]):
                for piece in resampler.resample(frame):
                    pieces.append(_samples(piece))
                    samples += len(pieces[-1])
                if samples > _MAX_SAMPLES:
                    limit = f"at most {MAX_AUDIO_SECONDS:g} s are taken"
                    raise InvalidRequest(field, "a longer file", limit, "cut it")
        pieces += [_samples(piece) for piece in resampler.resample(None)]
    except (av.FFmpegError, ValueError, EOFError) as error:
        limit = "it is not a sound file that can be read"
        remedy = "use WAV, FLAC, OGG, MP3, M4A or WebM"
        raise InvalidRequest(field, f"{len(file)} bytes", limit, remedy) from error
    return np.clip(np.concatenate(pieces), -1.0, 1.0)


def _samples(frame: av.AudioFrame) -> NDArray[np.float32]:
    return frame.to_ndarray().reshape(-1).astype(np.float32, copy=False)
