"""Health and metrics."""

from __future__ import annotations

import re
import time
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from client_protocol_double import CHUNK_SAMPLES, ProtocolDouble
from gateway.settings import Settings
from gateway_routes import router
from gateway_runs import served
from vita_audio.contract.rates import OUTPUT_SAMPLE_RATE_HZ

ROOT = Path(__file__).resolve().parents[2]


def test_health(gateway_url: str) -> None:
    assert httpx.get(f"{gateway_url}/health/live").json() == {"status": "ok"}
    ready = httpx.get(f"{gateway_url}/health/ready")
    assert ready.status_code == 200
    assert ready.json() == {"ready": True, "draining": False, "servers_ready": 1, "servers": 1}


def test_metrics_count_what_happened_by_route_and_status(double: ProtocolDouble) -> None:
    with served(Settings(servers=(double.url,)), router) as url:
        for text in ("chunks 2", "chunks 3", "short", 1):
            httpx.post(f"{url}/v1/speak", json={"text": text})
        httpx.post(f"{url}/v1/speak", content=b"{")
        for path in ("/etc/passwd", "/v1/a", "/v1/b"):
            httpx.get(url + path)
        # The server that broke a stream off is left until its health was asked for again.
        end_s = time.monotonic() + 30
        while f'server_ready{{server="{double.url}"}} 1.0' not in (page := httpx.get(f"{url}/metrics")).text:
            assert time.monotonic() < end_s, page.text
            time.sleep(0.05)
    assert page.headers["content-type"].startswith("text/plain")
    values = {
        (sample.name.removeprefix("vita_gateway_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(page.text)
        for sample in family.samples
    }
    assert values["requests_total", "/v1/speak", "200"] == 2
    assert values["requests_total", "/v1/speak", "502"] == 1
    assert values["requests_total", "/v1/speak", "400"] == 2
    assert values["requests_total", "other", "404"] == 3
    assert values["requests_running",] == 1  # this one
    assert values["streams_running", "/v1/speak"] == 0
    assert values["first_sound_seconds_count", "/v1/speak"] == 2
    assert values["sound_seconds_total", "anyone"] == 5 * CHUNK_SAMPLES / OUTPUT_SAMPLE_RATE_HZ
    assert values["server_ready", double.url] == 1
    assert values["server_streams_running", double.url] == 0
    assert "passwd" not in page.text


def test_the_manual_names_every_metric(gateway_url: str) -> None:
    named = set(re.findall(r"^\| `(vita_gateway_\w+)`", (ROOT / "docs" / "gateway.md").read_text(), re.MULTILINE))
    served = {
        family.name + ("_total" if family.type == "counter" else "")
        for family in text_string_to_metric_families(httpx.get(f"{gateway_url}/metrics").text)
    }
    assert named == served
