"""Asks a running server a spoken question; prints the answer and writes its sound while they come.

python examples/ask.py question.wav answer.wav [localhost:8001]
"""

import sys

from vita_client import Client, Pcm, TextDelta, VitaError, WavWriter


def main(question: str, answer: str, url: str = "localhost:8001") -> None:
    with Client(url) as client, client.stream(audio=question) as stream, WavWriter(answer) as wav:
        for event in stream:
            if isinstance(event, TextDelta):
                print(event.text, end="", flush=True)
            elif isinstance(event, Pcm):
                wav.write(event.samples)  # int16; the first come long before the answer is complete
        print(f"\n{wav.seconds:.2f} s of sound, the first after {stream.metrics.ttfa_ms or 0:.0f} ms")


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except VitaError as error:
        sys.exit(f"error: {error}")
