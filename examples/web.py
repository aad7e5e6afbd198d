"""A server, and the gateway with its web page before it; they end with this process: by Ctrl-C, or killed.

python examples/web.py --engines engines/cpu
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
from pathlib import Path

from server.launch import TritonServer
from server.options import ServerOptions
from vita_audio.contract.errors import VitaError
from vita_audio.stopping import stop_on_signals


def run_gateway(server: str, port: int) -> int:
    """Until it ends by itself, or on a signal; its exit code."""
    # Where this process is killed, Linux sends the gateway SIGTERM.
    command = ["setpriv", "--pdeathsig", "TERM", sys.executable, "-m", "gateway"]
    command += ["--server", server, "--port", str(port)]
    # A session of its own: Ctrl-C comes to this process alone, which ends the gateway before the server.
    gateway = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert gateway.stderr is not None
        for line in gateway.stderr:
            if '"event": "listening"' in line:
                print(f"talk at {json.loads(line)['url']} (Ctrl-C ends)", flush=True)
            else:
                sys.stderr.write(line)
        return gateway.wait()
    except KeyboardInterrupt:
        print("ending ...", flush=True)
        return 128 + signal.SIGINT
    finally:
        gateway.terminate()
        gateway.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", type=Path, default=Path("engines/cpu"))
    parser.add_argument("--port", type=int, default=8080, help="of the page; 0 picks a free one")
    options = parser.parse_args()
    stop_on_signals()
    try:
        print("starting the server ...", flush=True)
        with TritonServer(ServerOptions(engines=options.engines, grpc_port=0, metrics_port=0)) as server:
            return run_gateway(server.grpc_url, options.port)
    except VitaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
