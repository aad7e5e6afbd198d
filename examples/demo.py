"""The main job: start a real Triton server, ask it a spoken question and give it a text, write the answers as WAV.

python examples/demo.py --engines engines/cpu
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from server.launch import TritonServer
from server.options import DEVICES, PROFILES, ServerOptions
from vita_audio.contract.errors import VitaError
from vita_client import Client, Pcm, Stream, TextDelta
from vita_client.wav import WavWriter

QUESTION = Path(__file__).with_name("question.wav")  # "What is four plus three?", flite's voice slt
TEXT = "I can see three yellow ducks near the river."  # words the checkpoint knows, a sentence it was not taught
MAX_TOKENS = 200  # about ten seconds of sound

console = Console(highlight=False, soft_wrap=True)


def show(stream: Stream, out: Path) -> None:
    """Print the text as it streams, write the sound as it comes."""
    with stream, WavWriter(out) as wav:
        for event in stream:
            if isinstance(event, TextDelta):
                console.print(event.text, end="", markup=False, soft_wrap=True)
            elif isinstance(event, Pcm):
                if wav.seconds == 0:
                    console.print(f"[green]<first sound after {stream.metrics.ttfa_ms:.0f} ms>[/]", end="")
                wav.write(event.samples)
    metrics, status = stream.metrics, stream.status
    rtf = f", real-time factor {metrics.real_time_factor:.3f}" if metrics.real_time_factor else ""
    speed = f"{metrics.tokens} tokens, {metrics.tokens_per_s or 0:.0f} tokens/s"
    console.print(
        f"\n{speed}, {metrics.audio_s:.2f} s of sound{rtf}, ended by {status.reason if status else '-'}: {out}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", type=Path, default=Path("engines/cpu"))
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the WAV files")
    parser.add_argument("--mode", default="boost")
    parser.add_argument("--profile", choices=PROFILES, default="cpu", help="gpu: engines of --target gpu (docs/gpu.md)")
    parser.add_argument("--device", choices=DEVICES, default=DEVICES[0], help="where the gpu profile's engines run")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    where = {"profile": options.profile, "device": options.device}
    served = ServerOptions(engines=options.engines, grpc_port=0, metrics_port=0, **where)
    try:
        console.print("starting the server ...")
        with TritonServer(served) as server:
            console.print(f"ready after {server.start_seconds:.1f} s at {server.grpc_url} (log: {server.log_file})")
            with Client(server.grpc_url) as client:
                console.print(f"\n[bold]a spoken question: {QUESTION.name}[/]")
                question = client.stream(audio=QUESTION, mode=options.mode, max_tokens=MAX_TOKENS)
                show(question, options.out / "answer.wav")
                console.print(f"\n[bold]text to speech: {TEXT}[/]")
                speech = client.stream(TEXT, task="tts", mode=options.mode, max_tokens=MAX_TOKENS, seed=7)
                show(speech, options.out / "speech.wav")
            console.print("\nstopping the server ...")
    except VitaError as error:
        console.print(f"error: {error}", style="red")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
