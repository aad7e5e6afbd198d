"""Speech in: any file libsndfile reads, or an array, becomes mono float32 at 16 kHz within the limits of the contract.

Several channels are mixed down to their mean. The rate is changed here, not on the server: it saves bandwidth.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from vita_audio.contract.errors import InvalidRequest
from vita_audio.contract.limits import MAX_AUDIO_SECONDS, MAX_SAMPLE_RATE_HZ, MIN_SAMPLE_RATE_HZ
from vita_audio.contract.rates import INPUT_SAMPLE_RATE_HZ

AudioSource = str | os.PathLike[str] | BinaryIO | NDArray[np.generic]

#: More columns than this is a transposed array, not a recording.
_MAX_CHANNELS = 32
#: Filters and float files overshoot full scale a little, and are clipped; samples beyond this are in the wrong unit.
_MAX_PEAK = 4.0


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
        rate = INPUT_SAMPLE_RATE_HZ if sample_rate_hz is None else sample_rate_hz
        _check_rate(rate)
        samples = _from_array(source)
    else:
        if sample_rate_hz is not None:
            raise InvalidRequest("SAMPLE_RATE", sample_rate_hz, "a file states its own rate", "leave it out")
        samples, rate = _from_file(source)
    if samples.shape[0] == 0:
        raise InvalidRequest("AUDIO", source_name(source), "it has no samples", "record something")
    _check_seconds(samples.shape[0] / rate, source)
    mono = samples.mean(axis=1, dtype=np.float32)  # [samples]
    _check_values(mono, rate, source)
    if rate != INPUT_SAMPLE_RATE_HZ:
        mono = soxr.resample(mono, rate, INPUT_SAMPLE_RATE_HZ).astype(np.float32)
        if len(mono) == 0:
            raise InvalidRequest("AUDIO", source_name(source), "it is shorter than one sample at 16 kHz", "record more")
    return np.clip(mono, -1.0, 1.0)


def _from_file(source: str | os.PathLike[str] | BinaryIO) -> tuple[NDArray[np.float32], int]:
    """Samples float32 [samples, channels] and rate in Hz; the limits are checked before the samples are read."""
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if not path.exists():
            raise InvalidRequest("AUDIO", str(path), "there is no such file")
        if path.is_dir():
            raise InvalidRequest("AUDIO", str(path), "it is a folder, not a file")
    try:
        with soundfile.SoundFile(source) as file:
            _check_rate(file.samplerate)
            _check_seconds(file.frames / file.samplerate, source)
            if file.channels > _MAX_CHANNELS:
                raise InvalidRequest(
                    "AUDIO", source_name(source), f"it has {file.channels} channels, the limit is {_MAX_CHANNELS}"
                )
            return file.read(dtype="float32", always_2d=True), file.samplerate
    except PermissionError as error:
        raise InvalidRequest("AUDIO", source_name(source), "it may not be read", "check its permissions") from error
    except (soundfile.LibsndfileError, TypeError, ValueError, OSError) as error:
        # TypeError: soundfile takes a name ending in .raw for headerless data and asks for its rate.
        raise InvalidRequest(
            "AUDIO", source_name(source), "it is not a sound file that libsndfile can read", "use WAV, FLAC, OGG or MP3"
        ) from error


def _from_array(samples: NDArray[np.generic]) -> NDArray[np.float32]:
    """Samples of any accepted type and shape as float32 [samples, channels]."""
    if samples.ndim == 1:
        samples = samples[:, np.newaxis]
    if samples.ndim != 2 or (samples.shape[0] and not 1 <= samples.shape[1] <= _MAX_CHANNELS):
        raise InvalidRequest(
            "AUDIO", f"shape {samples.shape}", "an array has the shape [samples] or [samples, channels]", "transpose it"
        )
    if samples.dtype in (np.int16, np.int32):
        return samples.astype(np.float32) / np.float32(2 ** (8 * samples.dtype.itemsize - 1))
    if np.issubdtype(samples.dtype, np.floating):
        return samples.astype(np.float32)
    raise InvalidRequest(
        "AUDIO", f"dtype {samples.dtype}", "samples are floats in [-1, 1], int16 or int32", "convert it"
    )


def _check_rate(rate_hz: int) -> None:
    whole = isinstance(rate_hz, (int, np.integer)) and not isinstance(rate_hz, bool)
    if not whole or not MIN_SAMPLE_RATE_HZ <= rate_hz <= MAX_SAMPLE_RATE_HZ:
        raise InvalidRequest(
            "SAMPLE_RATE", rate_hz, f"it is a whole number from {MIN_SAMPLE_RATE_HZ} to {MAX_SAMPLE_RATE_HZ} Hz"
        )


def _check_seconds(seconds: float, source: AudioSource) -> None:
    if seconds > MAX_AUDIO_SECONDS:
        raise InvalidRequest(
            "AUDIO", source_name(source), f"it lasts {seconds:.1f} s, the limit is {MAX_AUDIO_SECONDS:g} s", "cut it"
        )


def _check_values(mono: NDArray[np.float32], rate_hz: int, source: AudioSource) -> None:
    finite = np.isfinite(mono)
    if not finite.all():
        first_s = float(np.argmin(finite)) / rate_hz
        raise InvalidRequest(
            "AUDIO",
            source_name(source),
            f"{int((~finite).sum())} samples are NaN or infinite, the first at {first_s:.3f} s",
            "replace them",
        )
    peak = float(np.abs(mono).max())
    if peak > _MAX_PEAK:
        raise InvalidRequest(
            "AUDIO", source_name(source), f"its peak is {peak:g}, samples lie in [-1, 1]", "divide by the full scale"
        )


def source_name(source: AudioSource) -> str:
    """What an error calls this source."""
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    return f"array of {len(source)} samples" if isinstance(source, np.ndarray) else "standard input"
