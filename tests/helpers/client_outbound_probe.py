"""Uses the client in every way while a raw socket sees all packets of this network namespace; prints what it saw.

Packets of the server's port are counted, all others listed as (protocol, destination, port). A last packet that the
probe sends itself shows that the raw socket works.
"""

from __future__ import annotations

import asyncio
import io
import ipaddress
import json
import socket
import struct
import sys
import time
import types

_IP, _IPV6, _TCP, _UDP = 0x0800, 0x86DD, 6, 17
#: Where the probe sends a packet of its own.
CONTROL = "198.51.100.7"


def destination(packet: bytes, kind: int) -> tuple[int, str, int, int]:
    """Protocol, destination address, and both ports (0 where there are none) of an IP packet."""
    if kind == _IP:
        protocol, address, rest = packet[9], packet[16:20], packet[4 * (packet[0] & 15) :]
    else:
        protocol, address, rest = packet[6], packet[24:40], packet[40:]
    ports = struct.unpack("!HH", rest[:4]) if protocol in (_TCP, _UDP) else (0, 0)
    return protocol, str(ipaddress.ip_address(address)), *ports


def use_the_client(port: int) -> None:
    """Import, health, streams of both clients, a spoken question, playback, and the command line."""
    device = types.SimpleNamespace(start=int, stop=int, close=int, write=len)
    module = types.SimpleNamespace(OutputStream=lambda **_: device, PortAudioError=OSError)
    sys.modules["sounddevice"] = module  # type: ignore[assignment]
    import numpy as np

    from vita_client import AsyncClient, Client, cli

    for url in (f"localhost:{port}", f"127.0.0.1:{port}"):
        with Client(url) as client:
            assert client.wait_ready(30).ready
            client.collect("chunks 2")
            client.collect(audio=np.zeros(1600, np.float32))
            with client.stream("stall") as stream:
                next(stream)

    async def stream_asynchronously() -> None:
        async with AsyncClient(f"localhost:{port}") as client:
            await client.wait_ready(30)
            await client.collect("chunks 2")

    asyncio.run(stream_asynchronously())
    sys.stdout = io.TextIOWrapper(io.BytesIO())
    for words in (["health"], ["say", "chunks 2", "--play", "-o", "/dev/null"]):
        cli.app([*words, "-u", f"localhost:{port}"], standalone_mode=False)


def main() -> None:
    sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
    sniffer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)
    sniffer.setblocking(False)
    out = sys.stdout

    from client_protocol_double import ProtocolDouble

    double = ProtocolDouble()
    use_the_client(double.port)
    time.sleep(1)
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", (CONTROL, 53))
    time.sleep(0.2)
    server, others, control = 0, [], []  # type: ignore[var-annotated]
    while True:
        try:
            packet, (_, kind, direction, *_) = sniffer.recvfrom(65536)
        except BlockingIOError:
            break
        if kind not in (_IP, _IPV6) or direction != socket.PACKET_OUTGOING:
            continue
        protocol, address, *ports = destination(packet, kind)
        if double.port in ports:
            server += 1
        elif protocol in (_TCP, _UDP):  # all else is the kernel's own
            (control if address == CONTROL else others).append([protocol, address, ports[1]])
    print(json.dumps({"server": server, "others": others, "control": control}), file=out)
    out.flush()
    double.close()


main()
