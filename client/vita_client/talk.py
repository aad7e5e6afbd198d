"""A conversation on the command line: sound files, typed lines or a microphone; Ctrl-C interrupts an answer."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack

from vita_audio.contract.errors import VitaError
from vita_client.audio import load_speech
from vita_client.client import Client
from vita_client.conversation import Conversation
from vita_client.interrupts import interruptible
from vita_client.options import StreamOptions
from vita_client.playback import Player
from vita_client.request import check_timeout
from vita_client.session import SoundFile, consume
from vita_client.stdin import decoded, standard_input
from vita_client.terminal import View

#: Adds a turn to a conversation.
Turn = Callable[[Conversation], None]


def run_talk(options: StreamOptions, turns: Iterable[Turn], make_view: Callable[[], View]) -> None:
    """Answer after answer, until there are no more turns.

    An answer that is interrupted by Ctrl-C stays in the conversation as far as it came, or, where it is played, as far
    as it was played; before its first response, its turn is dropped. The next turn follows. All sound goes into one
    file.

    Args:
        turns: may wait for a person; a KeyboardInterrupt of theirs ends the conversation.

    Raises:
        VitaError, OSError: as `run_stream`; the turns before are kept.
        KeyboardInterrupt: between two turns.
    """
    view: View | None = None
    try:
        check_timeout(options.timeout)
        with ExitStack() as stack:
            sound = stack.enter_context(SoundFile(options))
            client = stack.enter_context(Client(connection=options.connection()))
            talk = client.conversation(timeout_s=options.timeout, **options.fields)
            for turn in turns:
                turn(talk)
                view = make_view()
                _answer(talk, sound, options.play, view)
                view.stop()
    except VitaError as error:
        view = view or make_view()
        view.refused(error)
        raise
    finally:
        if view is not None:
            view.stop()


def _answer(talk: Conversation, sound: SoundFile, play: bool, view: View) -> None:
    player, before = Player() if play else None, talk.history
    try:
        with interruptible(talk.respond) as stream:
            consume(stream, sound, player, view, last=False)
        if player is not None:  # it plays longer than the server takes
            player.finish()
    except KeyboardInterrupt:
        if player is not None:
            player.stop()
            if talk.history is not before:
                talk.heard(player.played_s)
        talk.clear()  # of a turn that was interrupted before its first response
        return
    except BaseException:
        if player is not None:
            player.stop()
        raise


def spoken(path: str) -> Turn:
    """A turn that is a sound file."""
    return lambda talk: talk.append_audio(load_speech(path))


def typed(prompt: bool) -> Iterable[Turn]:
    """A turn for each line of standard input that is not empty; `prompt` asks for them.

    Raises:
        InvalidRequest: field TEXT; standard input is closed, or not UTF-8.
    """
    while True:
        if prompt:
            print("> ", end="", file=sys.stderr, flush=True)
        line = standard_input("TEXT").readline()
        if not line:
            return
        if (text := decoded(line)).strip():
            yield lambda talk, text=text: talk.append_text(text)  # type: ignore[misc]
