"""Streams of the command line: their events go to the screen, the WAV file and the speaker."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.typing import NDArray

from vita_audio.contract.errors import InvalidRequest, VitaError
from vita_client.client import Client, Stream
from vita_client.events import Collector, Pcm
from vita_client.interrupts import interruptible
from vita_client.options import StreamOptions
from vita_client.playback import Player
from vita_client.reading import Reading
from vita_client.request import check_timeout
from vita_client.terminal import View
from vita_client.wav import WavWriter

if TYPE_CHECKING:
    from typing_extensions import Self


#: Sends what was checked.
Start = Callable[[Client], Stream | Reading]


def run_stream(options: StreamOptions, prepare: Callable[[], Start], view: View) -> None:
    """Run one stream to its end; `prepare` checks what is to be sent.

    The WAV file is made when the server's first answer comes, so that a request that fails at once harms no old file;
    from then on it is valid at every moment.

    Raises:
        VitaError: bad input, or any way a stream can fail. OSError: the file or the screen cannot be written.
        KeyboardInterrupt: after the stream was cancelled on the server and the file closed.
    """
    with ExitStack() as stack:
        try:
            check_timeout(options.timeout)
            connection = options.connection()
            sound = stack.enter_context(SoundFile(options))
            start = prepare()
            player = stack.enter_context(Player()) if options.play else None
            client = stack.enter_context(Client(connection=connection))
            stream = stack.enter_context(interruptible(lambda: start(client)))
        except VitaError as error:
            view.refused(error)
            raise
        consume(stream, sound, player, view)


class SoundFile:
    """The file, or standard output, that the sound goes to: made when the first answer comes; without one, nothing.

    Raises:
        InvalidRequest: field output; found out before anything is sent.
    """

    def __init__(self, options: StreamOptions) -> None:
        self._output = _output(options)
        self.wav: WavWriter | None = None

    def begin(self) -> None:
        """An answer comes."""
        if self._output is not None and self.wav is None:
            self.wav = WavWriter(self._output)

    def write(self, samples: NDArray[np.int16]) -> None:
        if self.wav is not None:
            self.wav.write(samples)

    def close(self) -> None:
        if self.wav is not None:
            self.wav.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def consume(stream: Stream | Reading, sound: SoundFile, player: Player | None, view: View, last: bool = True) -> None:
    """One stream to its end; after the `last` one the file is closed. Raises as `run_stream`."""
    collector, outcome = Collector(), "failed"
    problem: VitaError | None = None
    try:
        for event in stream:
            sound.begin()
            collector.add(event)
            if isinstance(event, Pcm):
                sound.write(event.samples)
                if player is not None:
                    player.write(event.samples)
            view.event(event, stream.metrics)
        outcome = f"done ({stream.status.reason})" if stream.status and stream.status.reason else "done"
        if stream.cancelled:
            outcome = "interrupted"
    except KeyboardInterrupt:
        outcome = "interrupted"
        raise
    except VitaError as error:
        problem = error
        raise
    finally:
        try:
            if last:
                sound.close()
        finally:
            view.stop()
            reply = collector.reply(stream.status, stream.metrics)
            view.summary(reply, sound.wav, outcome, problem)


def _output(options: StreamOptions) -> Path | BinaryIO | None:
    """Where the sound goes; that a file cannot be written is found out before anything is sent.

    Raises:
        InvalidRequest: field output.
    """
    path = options.output
    if path is None:
        return None
    if options.to_stdout:
        if sys.stdout.isatty():
            raise InvalidRequest("output", str(path), "standard output is a terminal", "redirect it, or name a file")
        return sys.stdout.buffer
    try:
        if path.is_dir():
            raise InvalidRequest("output", str(path), "it is a folder", "name a file in it")
        if not path.parent.is_dir():
            raise InvalidRequest("output", str(path), f"there is no folder {path.parent}", "make it first")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise InvalidRequest("output", str(path), "it may not be written", "check the permissions")
    except OSError as error:  # a name that is too long, for example
        raise InvalidRequest("output", str(path), f"it cannot be written ({error.strerror})") from error
    return path
