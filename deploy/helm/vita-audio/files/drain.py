"""preStop hook of a server's pod: waits until its streams have ended, before Kubernetes sends SIGTERM.

Balancers, and clients that hold a connection, still send streams for some seconds after the pod's deletion began. They
are served as long as this hook runs; after SIGTERM the launcher refuses them.
"""

from __future__ import annotations

import argparse
import time

from server.metrics import STREAMS, read_metrics

POLL_S = 1.0
#: Polls in a row without a stream: one may be on its way from one stage to the next.
IDLE_POLLS = 2


def live_streams(port: int) -> int | None:
    """Streams of the server on this pod; None when the server is gone."""
    try:
        metrics = read_metrics("127.0.0.1", port)
    except ConnectionRefusedError:
        return None
    except OSError:  # busy: its streams may still be running
        return 1
    return int(sum(value for name, value in metrics.items() if name.startswith(STREAMS)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--metrics-port", type=int, required=True)
    parser.add_argument("--settle", type=float, required=True, help="seconds until no balancer sends new streams")
    parser.add_argument("--limit", type=float, required=True, help="seconds that streams may take after that")
    options = parser.parse_args()
    time.sleep(options.settle)
    deadline = time.monotonic() + options.limit
    idle = 0
    while idle < IDLE_POLLS and time.monotonic() < deadline:
        live = live_streams(options.metrics_port)
        if live is None:
            return
        idle = 0 if live else idle + 1
        time.sleep(POLL_S)


if __name__ == "__main__":
    main()
