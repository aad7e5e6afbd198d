"""Speech in: any file libsndfile reads, or an array, becomes mono float32 at 16 kHz within the limits of the contract.

Several channels are mixed down to their mean, or the loudest one is taken where they cancel each other out. The rate is
changed here, not on the server: it saves bandwidth.
"""

from __future__ import annotations

import io
import os
import stat
from typing import BinaryIO

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from vita_audio.contract.errors import InvalidRequest
from vita_audio.contract.fields import AudioSource
from vita_audio.contract.rates import INPUT_SAMPLE_RATE_HZ
from vita_audio.contract.request import check_field
from vita_audio.contract.speech import check_audio, check_duration

#: More columns than this is a transposed array, not a recording.
_MAX_CHANNELS = 32
#: Of the loudest channel's power. The mean of it and a silent channel has a quarter, of it and its opposite nothing.
_CANCELLED_SHARE = 0.05
#: Of a pipe, which is read whole: more than 120 s of stereo at the highest rate.
_MAX_PIPED_BYTES = 256 * 1024 * 1024


def load_speech(source: AudioSource, sample_rate_hz: int | None = None) -> NDArray[np.float32]:
    """Read speech from a path, an open binary file or an array.

    Args:
        source: a file in any format libsndfile reads, or samples [samples] or [samples, channels]: floats in [-1, 1],
            int16 or int32.
        sample_rate_hz: rate of an array (default 16 000); a file states its own.

    Returns:
        float32 [samples] in [-1, 1], mono, 16 kHz.

    Raises:
        InvalidRequest: field AUDIO (unreadable, empty, not finite, too long, wrong shape or type) or SAMPLE_RATE.
    """
    if isinstance(source, np.ndarray):
        rate = check_field("SAMPLE_RATE", INPUT_SAMPLE_RATE_HZ if sample_rate_hz is None else sample_rate_hz)
        samples = _from_array(source)
    else:
        name = _name(source)
        if sample_rate_hz is not None:
            raise InvalidRequest("SAMPLE_RATE", sample_rate_hz, "a file states its own rate", "leave it out")
        samples, rate = _from_file(source, name)
    speech = _mixed(samples)
    check_audio(speech, rate)
    if rate != INPUT_SAMPLE_RATE_HZ:
        speech = soxr.resample(speech, rate, INPUT_SAMPLE_RATE_HZ).astype(np.float32)
    return np.clip(speech, -1.0, 1.0)


def mono(samples: NDArray[np.generic]) -> NDArray[np.float32]:
    """Samples [samples] or [samples, channels] of any type that `load_speech` takes -> float32 [samples].

    Raises:
        InvalidRequest: field AUDIO; wrong shape or type.
    """
    return _mixed(_from_array(samples))


def _mixed(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """[samples, channels] -> [samples]: the mean, or the loudest channel where they cancel each other out."""
    mean = samples.mean(axis=1, dtype=np.float32)
    if samples.shape[1] == 1 or not len(samples):
        return mean
    power = np.square(samples, dtype=np.float32).sum(axis=0)
    loudest = int(power.argmax())
    cancelled = np.square(mean).sum() < _CANCELLED_SHARE * power[loudest]
    return samples[:, loudest] if cancelled else mean


def _name(source: str | os.PathLike[str] | BinaryIO) -> str:
    """What messages call a path or an open file: its own name, else its type.

    Raises:
        InvalidRequest: field AUDIO; it is neither.
    """
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    kind = type(source).__name__
    if isinstance(source, io.TextIOBase) or not hasattr(source, "read"):
        remedy = "open a file with 'rb', put bytes into io.BytesIO, samples into numpy.asarray"
        raise InvalidRequest("AUDIO", f"type {kind}", "it is a path, a binary file or an array", remedy)
    name = getattr(source, "name", None)
    return "standard input" if name == "<stdin>" else name if isinstance(name, str) else kind


def _from_file(source: str | os.PathLike[str] | BinaryIO, name: str) -> tuple[NDArray[np.float32], int]:
    """Samples float32 [samples, channels] and rate in Hz; the limits are checked before the samples are read."""
    if isinstance(source, (str, os.PathLike)):
        if not os.path.exists(source):
            raise InvalidRequest("AUDIO", name, "there is no such file")
        if os.path.isdir(source):
            raise InvalidRequest("AUDIO", name, "it is a folder, not a file")
    try:
        with soundfile.SoundFile(_seekable(source, name)) as file:
            check_duration(file.frames, check_field("SAMPLE_RATE", file.samplerate))
            if file.channels > _MAX_CHANNELS:
                raise InvalidRequest("AUDIO", name, f"it has {file.channels} channels, the limit is {_MAX_CHANNELS}")
            return file.read(dtype="float32", always_2d=True), file.samplerate
    except PermissionError as error:
        raise InvalidRequest("AUDIO", name, "it may not be read", "check its permissions") from error
    except (soundfile.LibsndfileError, TypeError, ValueError, OSError) as error:
        # TypeError: soundfile takes a name ending in .raw for headerless data and asks for its rate.
        limit = "it is not a sound file that libsndfile can read"
        raise InvalidRequest("AUDIO", name, limit, "use WAV, FLAC, OGG or MP3") from error


def _seekable(source: str | os.PathLike[str] | BinaryIO, name: str) -> str | os.PathLike[str] | BinaryIO:
    """The source itself, or the content of one that cannot seek (a FIFO, a pipe): libsndfile seeks."""
    if isinstance(source, (str, os.PathLike)):
        if stat.S_ISREG(os.stat(source).st_mode):
            return source
        with open(source, "rb") as pipe:
            content = pipe.read(_MAX_PIPED_BYTES + 1)
    elif getattr(source, "seekable", lambda: True)():
        return source
    else:
        content = source.read(_MAX_PIPED_BYTES + 1)
    if len(content) > _MAX_PIPED_BYTES:
        limit = f"a pipe may bring at most {_MAX_PIPED_BYTES} bytes"
        raise InvalidRequest("AUDIO", name, limit, "write a file first, or compress it")
    return io.BytesIO(content)


def _from_array(samples: NDArray[np.generic]) -> NDArray[np.float32]:
    """Samples of any accepted type and shape as float32 [samples, channels]."""
    if samples.ndim == 1:
        samples = samples[:, np.newaxis]
    if samples.ndim != 2 or (samples.shape[0] and not 1 <= samples.shape[1] <= _MAX_CHANNELS):
        limit = "an array has the shape [samples] or [samples, channels]"
        raise InvalidRequest("AUDIO", f"shape {samples.shape}", limit, "transpose it")
    if samples.dtype in (np.int16, np.int32):
        return samples.astype(np.float32) / np.float32(2 ** (8 * samples.dtype.itemsize - 1))
    if np.issubdtype(samples.dtype, np.floating):
        return samples.astype(np.float32)
    limit = "samples are floats in [-1, 1], int16 or int32"
    raise InvalidRequest("AUDIO", f"dtype {samples.dtype}", limit, "convert it")
