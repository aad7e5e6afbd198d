"""Has a running server read a text aloud and writes the sound into a file.

python examples/speak.py "The happy dog is in the garden." dog.wav [localhost:8001]
"""

import sys

from vita_client import Client, VitaError, WavWriter


def main(text: str, file: str, url: str = "localhost:8001") -> None:
    with Client(url) as client:
        reply = client.collect(text, task="tts", seed=7)  # equal seeds give equal sound
    with WavWriter(file) as wav:
        wav.write(reply.pcm)
    print(f"{wav.seconds:.2f} s of sound in {reply.metrics.elapsed_ms / 1000:.2f} s")


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except VitaError as error:
        sys.exit(f"error: {error}")
