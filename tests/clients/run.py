"""Clients as people have them, against a gateway over a real Triton server; nothing of them is changed.

python tests/clients/run.py [openai_sdk pipecat_pipeline livekit_agent wyoming_client open_webui]

Each client is a script beside this file, and has a virtual environment of its own with what requirements/ pins; it is
made once. The exit status is 1 if something failed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from server.launch import TritonServer
from server.options import ServerOptions
from vita_client import Client

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CLIENTS = sorted(file.stem for file in (HERE / "requirements").glob("*.txt"))
QUESTION = ROOT / "examples" / "question.wav"
TYPED, SENTENCE = "What is the opposite of hot?", "The happy dog is in the garden."
LIMIT_S = 900


def environment(name: str, folder: Path) -> Path:
    """The interpreter of a client's virtual environment, which is made where its requirements are new."""
    requirements, python = HERE / "requirements" / f"{name}.txt", folder / name / "bin" / "python"
    made = folder / name / "requirements.txt"
    if not made.exists() or made.read_text() != requirements.read_text():
        print(f"{name}: making its environment in {folder / name}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder / name], check=True)
        command = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "-r", requirements]
        subprocess.run(command, check=True)
        made.write_text(requirements.read_text())
    return python


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def gateway(server: str) -> Iterator[tuple[str, str]]:
    """A gateway over a server, as its command starts it: its addresses for HTTP and for Wyoming."""
    http, wyoming = free_port(), free_port()
    ports = ["--port", str(http), "--wyoming-port", str(wyoming)]
    process = subprocess.Popen([sys.executable, "-m", "gateway", "--server", server, *ports], cwd=ROOT)
    try:
        wait_for(f"http://127.0.0.1:{http}/v1/models", process)
        yield f"http://127.0.0.1:{http}", f"tcp://127.0.0.1:{wyoming}"
    finally:
        process.terminate()
        process.wait(60)


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    end_s = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError as error:
            if process.poll() is not None or time.monotonic() > end_s:
                raise SystemExit(f"the gateway did not start: {error}") from error
            time.sleep(0.1)


def case_of(server: str, http: str, wyoming: str) -> dict[str, object]:
    """The attributes of `checks.Case`: what gRPC answers without a gateway."""
    with urllib.request.urlopen(f"{http}/v1/models", timeout=10) as answer:
        model = json.load(answer)["data"][0]["id"]
    with Client(server) as client:
        spoken, typed = client.collect(audio=str(QUESTION)), client.collect(TYPED)
        return {
            "gateway": http,
            "wyoming": wyoming,
            "model": model,
            "question_file": str(QUESTION),
            "question": client.collect(audio=str(QUESTION), task="asr").text,
            "answer": spoken.text,
            "answer_s": len(spoken.pcm) / spoken.sample_rate_hz,
            "typed": TYPED,
            "typed_answer": typed.text,
            "typed_answer_s": len(typed.pcm) / typed.sample_rate_hz,
            "sentence": SENTENCE,
            "sentence_s": len(client.collect(SENTENCE, task="tts").pcm) / 22_050,
        }


def run_script(command: list[str | Path], folder: str) -> int:
    """Its exit status. What it has started ends with it."""
    process = subprocess.Popen(command, cwd=folder, start_new_session=True)
    try:
        return process.wait(LIMIT_S)
    except subprocess.TimeoutExpired:
        print(f"FAILED not finished within {LIMIT_S} s")
        return 1
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clients", nargs="*", metavar="client", help=f"of {', '.join(CLIENTS)}; all of them otherwise")
    parser.add_argument("--engines", type=Path, default=ROOT / "engines" / "cpu")
    parser.add_argument("--environments", type=Path, default=ROOT / ".clients")
    parser.add_argument("--here", action="store_true", help="in this environment, with the packages that it has")
    options = parser.parse_args()
    if unknown := sorted(set(options.clients) - set(CLIENTS)):
        parser.error(f"unknown client {', '.join(unknown)}: there are {', '.join(CLIENTS)}")
    names = options.clients or CLIENTS
    pythons = {
        name: Path(sys.executable) if options.here else environment(name, options.environments) for name in names
    }
    failed = []
    with (
        TritonServer(ServerOptions(engines=options.engines, grpc_port=0, metrics_port=0)) as server,
        gateway(server.grpc_url) as addresses,
        tempfile.TemporaryDirectory() as folder,
    ):
        case = Path(folder) / "case.json"
        case.write_text(json.dumps(case_of(server.grpc_url, *addresses)))
        for name, python in pythons.items():
            print(f"{name}:", flush=True)
            # Not from the repository's root: the packages of the client alone are found.
            if run_script([python, HERE / f"{name}.py", case], folder):
                failed.append(name)
    print(f"failed: {', '.join(failed)}" if failed else f"{len(pythons)} clients: all that was tried works")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
