"""Runs the server and every long program in a network namespace, and prints the hosts that they asked for or sent to.

A name server of the probe's own answers every question with an address, so that whoever asks also goes on to connect.
Last comes a program that does call out: it must be seen.
"""

from __future__ import annotations

import ipaddress
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from foreground import foreground
from packet_sniffer import Packet, PacketSniffer
from training_lm_data import conversation_lines, write_lines
from vita_client import Client

#: ONNX Runtime asks for its telemetry host within 20 s.
SERVE_S = 25.0
CONTROL = "telemetry.example.com"
CALL_OUT = f"""
import socket
address = socket.getaddrinfo("{CONTROL}", 443, socket.AF_INET, socket.SOCK_STREAM)[0][4]
socket.socket().connect_ex(address)
"""


def is_local(packet: Packet) -> bool:
    return ipaddress.ip_address(packet.address).is_loopback and packet.port != 53


class NameServer:
    """Answers questions at every address of this namespace. `asked`: the names, in their order."""

    ANSWER = socket.inet_aton("198.51.100.7")

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("", 53))
        threading.Thread(target=self._serve, name="name server", daemon=True).start()

    def _serve(self) -> None:
        while True:
            question, sender = self._socket.recvfrom(512)
            labels, place = [], 12  # behind the header
            while length := question[place]:
                labels.append(question[place + 1 : place + 1 + length].decode(errors="replace"))
                place += 1 + length
            self.asked.append(".".join(labels))
            asks_ipv4 = question[place + 1 : place + 3] == b"\0\1"
            record = b"\xc0\x0c\0\1\0\1\0\0\0\0\0\4" + self.ANSWER if asks_ipv4 else b""
            head = question[:2] + b"\x81\x80\0\1" + bytes([0, asks_ipv4]) + bytes(4)
            self._socket.sendto(head + question[12 : place + 5] + record, sender)


def programs(folder: Path, engines: Path, url: str) -> dict[str, list[str]]:
    """Arguments of Python by what they run."""
    checkpoint = engines.parent / "checkpoint"
    data = write_lines(folder / "data" / "data.jsonl", conversation_lines(folder / "data"))
    load = ["--rate", "1", "--run-time", "5", "--warm-up", "1", "--drain", "10", "--answer-tokens", "20"]
    return {
        "demo": ["examples/demo.py", "--engines", str(engines), "--out", str(folder / "demo")],
        "training": [
            *["-m", "training", "finetune", "--checkpoint", str(checkpoint), "--data", str(data)],
            *["--out", str(folder / "training"), "--steps", "2", "--length", "256", "--accumulation", "1"],
        ],
        "load test": ["-m", "loadtest", "--url", url, *load, "--out", str(folder / "load")],
        "build": ["-m", "build_engines", "--checkpoint", str(checkpoint), "--out", str(folder / "engines")],
    }


def main() -> None:
    folder, engines = Path(sys.argv[1]), Path(sys.argv[2])
    names = NameServer()
    sniffer = PacketSniffer(is_local)
    seen: dict[str, object] = {}
    with foreground(engines, folder) as server:
        url, begin = server.url(), time.monotonic()
        for name, arguments in programs(folder, engines, url).items():
            done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{name}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
            print(f"{name} until {time.monotonic() - begin:.0f} s", file=sys.stderr)
        with Client(url) as client:
            while True:
                client.collect("one two", task="tts", max_tokens=20)
                if time.monotonic() - begin > SERVE_S:
                    break
                time.sleep(0.5)
    seen |= {"asked": list(names.asked), "packets": list(sniffer.others), "local": sniffer.ours}
    subprocess.run([sys.executable, "-c", CALL_OUT], check=True)
    time.sleep(0.5)
    seen |= {
        "control asked": sorted({*names.asked[len(seen["asked"]) :]}),  # type: ignore[arg-type]
        "control reached": sorted({(p.address, p.port) for p in sniffer.others[len(seen["packets"]) :]}),  # type: ignore[arg-type]
    }
    print(json.dumps(seen))


os.environ.pop("ORT_DISABLE_TELEMETRY", None)
main()
