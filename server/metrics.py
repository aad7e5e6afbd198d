"""Reads this project's own metrics from a running server's metrics port."""

from __future__ import annotations

import http.client

PREFIX = "vita_"
#: Streams by stage and state; all zero when nothing is going on.
STREAMS = "vita_streams{"
#: Streams from their admission until the decoder has released them, just before their last sound leaves.
PLACES = "vita_places_taken"
READ_TIMEOUT_S = 2.0


def read_metrics(host: str, port: int) -> dict[str, float]:
    """``name{labels}`` -> value of all metrics that begin with ``vita_``.

    Raises:
        OSError: there is no answer.
    """
    connection = http.client.HTTPConnection(host, port, timeout=READ_TIMEOUT_S)
    try:
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
    except http.client.HTTPException as error:
        raise OSError(f"the metrics port answers nonsense: {error}") from error
    finally:
        connection.close()
    return {key: float(value) for key, value in (line.rsplit(" ", 1) for line in lines if line.startswith(PREFIX))}
