"""Uses the client in every way while a raw socket sees all packets of this network namespace; prints what it saw.

Packets of the server's port are counted, all others listed as (protocol, destination, port). A last packet that the
probe sends itself shows that the raw socket works.
"""

from __future__ import annotations

import asyncio
import io
import json
import socket
import sys
import time
import types

from packet_sniffer import PacketSniffer

#: Where the probe sends a packet of its own.
CONTROL = "198.51.100.7"


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
            client.collect(audio=np.full(1600, 0.1, np.float32))
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
    ports: list[int] = []
    sniffer = PacketSniffer(lambda packet: packet.source_port in ports or packet.port in ports)
    out = sys.stdout

    from client_protocol_double import ProtocolDouble

    double = ProtocolDouble()
    ports.append(double.port)
    use_the_client(double.port)
    time.sleep(1)
    before = len(sniffer.others)
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", (CONTROL, 53))
    time.sleep(0.2)
    others, control = sniffer.others[:before], [(p.protocol, p.address, p.port) for p in sniffer.others[before:]]
    print(json.dumps({"server": sniffer.ours, "others": others, "control": control}), file=out)
    out.flush()
    double.close()


main()
