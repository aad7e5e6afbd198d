"""Requests made up from the OpenAPI description: no fault, no hang, and every answer as it is described."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode, checks
from schemathesis.schemas import BaseSchema

from client_protocol_double import ProtocolDouble
from gateway.app import create_app
from gateway.settings import Settings
from gateway_routes import router
from gateway_runs import served

#: Of each operation, right and wrong ones; the longest answer may take so long.
EXAMPLES, SECONDS = 25, 30
CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]


def operations() -> list[tuple[str, str, Any]]:
    """Path and method of every route, and of the small ones of the tests; wrong requests where something can be."""
    app = create_app(Settings())
    app.include_router(router)
    return [
        (path, method, mode)
        for path, methods in app.openapi()["paths"].items()
        for method, operation in methods.items()
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
        if path not in ("/v1/endless", "/v1/fault")
        and (mode is GenerationMode.POSITIVE or "requestBody" in operation or "parameters" in operation)
    ]


@pytest.fixture(scope="module")
def schema() -> Iterator[BaseSchema]:
    """Of a gateway over a double that answers every text; at the end nothing runs any more."""
    double = ProtocolDouble()
    double.otherwise = "chunks 2"
    with served(Settings(servers=(double.url,), max_body_bytes=100_000, request_timeout_s=10), router) as url:
        yield schemathesis.openapi.from_url(f"{url}/openapi.json")
        lines = httpx.get(f"{url}/metrics").text.splitlines()
    double.close()
    running = {
        line.rpartition(" ")[0]: float(line.split()[-1]) for line in lines if "_running" in line[:60] and line[0] != "#"
    }
    assert running.pop("vita_gateway_requests_running") == 1  # the question itself
    assert set(running.values()) == {0}


@pytest.mark.parametrize(("path", "method", "mode"), operations())
def test_no_request_makes_a_fault_or_a_hang(schema: BaseSchema, path: str, method: str, mode: GenerationMode) -> None:
    @given(case=schema[path][method].as_strategy(generation_mode=mode))
    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    def ask(case: schemathesis.Case) -> None:
        case.validate_response(case.call(timeout=SECONDS), checks=CHECKS)

    ask()
