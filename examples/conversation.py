"""Talks with a running server, which answers with all turns before in mind; a turn is a text or the name of a WAV file.

python examples/conversation.py answers.wav localhost:8001 "Two plus three?" "And plus four?" question.wav
"""

import sys

from vita_client import Client, Pcm, TextDelta, VitaError, WavWriter


def main(answers: str, url: str, *turns: str) -> None:
    with Client(url) as client, WavWriter(answers) as wav:
        talk = client.conversation()
        for turn in turns:
            spoken = turn.endswith(".wav")
            with talk.respond(None if spoken else turn, audio=turn if spoken else None) as answer:
                for event in answer:
                    if isinstance(event, TextDelta):
                        print(event.text, end="", flush=True)
                    elif isinstance(event, Pcm):
                        wav.write(event.samples)
            print(f"\n  the first sound after {answer.metrics.ttfa_ms or 0:.0f} ms")
        print(f"{wav.seconds:.2f} s of sound")


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except VitaError as error:
        sys.exit(f"error: {error}")
