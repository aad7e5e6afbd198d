"""Reading our own metrics from the metrics port: values by name and labels, and an error where there is no answer."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from server.metrics import read_metrics

TEXT = """# HELP vita_streams streams
# TYPE vita_streams gauge
vita_streams{stage="lm",state="running"} 2
vita_streams{stage="lm",state="a b"} 3.5
nv_inference_count{model="vita_"} 7
vita_tokens 1e3
"""


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/metrics" else 404)
        self.end_headers()
        self.wfile.write(TEXT.encode() if self.path == "/metrics" else b"")

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def test_ours_alone_with_their_labels(port: int) -> None:
    assert read_metrics("127.0.0.1", port) == {
        'vita_streams{stage="lm",state="running"}': 2.0,
        'vita_streams{stage="lm",state="a b"}': 3.5,
        "vita_tokens": 1000.0,
    }


def test_what_is_no_http_is_an_error_of_the_connection() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"nonsense\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(OSError, match="the metrics port answers nonsense"):
            read_metrics("127.0.0.1", port)
        thread.join(10)
    with pytest.raises(OSError, match="refused"):
        read_metrics("127.0.0.1", port)
