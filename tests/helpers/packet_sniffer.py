"""Sees every packet of a network namespace whose only device is the loopback one: no attempt to leave is missed."""

from __future__ import annotations

import ipaddress
import shutil
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

_IP, _IPV6, _TCP, _UDP = 0x0800, 0x86DD, 6, 17
#: Every address leads to the loopback device.
_SCRIPT = """
ip link set lo up && ip route add local default dev lo || exit 77
ip -6 route add local default dev lo
exec "$0" "$@"
"""


class Packet(NamedTuple):
    """One that was sent; ports are 0 where there are none."""

    protocol: int
    address: str
    source_port: int
    port: int


def run_in_namespace(
    program: Path, *arguments: str, environment: Mapping[str, str], cwd: Path, timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """Run a Python program in a network namespace of its own; skips the test where there can be none."""
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        pytest.skip("needs unshare and ip")
    namespace = ["unshare", "--user", "--map-root-user", "--net", "bash", "-c", _SCRIPT]
    command = [*namespace, sys.executable, str(program), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd, timeout=timeout_s)
    if "unshare:" in done.stderr or done.returncode == 77:
        pytest.skip(f"no network namespace here: {done.stderr.strip()}")
    return done


class PacketSniffer:
    """Collects the TCP and UDP packets that are sent, from its start on.

    Args:
        is_ours: whether a packet is one that may be sent.

    Attributes:
        ours: how many of them there were.
        others: all that may not be sent.
    """

    def __init__(self, is_ours: Callable[[Packet], bool]) -> None:
        self.ours = 0
        self.others: list[Packet] = []
        self._is_ours = is_ours
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)
        threading.Thread(target=self._read, name="sniffer", daemon=True).start()

    def _read(self) -> None:
        while True:
            raw, (_, kind, direction, *_) = self._socket.recvfrom(128)  # the rest is cut off
            if direction != socket.PACKET_OUTGOING or kind not in (_IP, _IPV6):
                continue
            packet = read_packet(raw, kind)
            if packet.protocol not in (_TCP, _UDP):  # the kernel's own
                continue
            if self._is_ours(packet):
                self.ours += 1
            else:
                self.others.append(packet)


def read_packet(raw: bytes, kind: int) -> Packet:
    """The head of an IP packet."""
    if kind == _IP:
        protocol, address, rest = raw[9], raw[16:20], raw[4 * (raw[0] & 15) :]
    else:
        protocol, address, rest = raw[6], raw[24:40], raw[40:]
    ports = struct.unpack("!HH", rest[:4]) if protocol in (_TCP, _UDP) else (0, 0)
    return Packet(protocol, str(ipaddress.ip_address(address)), *ports)
