"""The application: schema, errors of no route."""

from __future__ import annotations

import httpx


def test_a_path_that_is_not_there_is_answered_in_the_form_of_openai(gateway_url: str) -> None:
    answer = httpx.get(f"{gateway_url}/v1/nothing")
    assert answer.status_code == 404
    assert answer.json() == {
        "error": {"message": "Not Found", "type": "invalid_request_error", "param": None, "code": "not_found"}
    }


def test_the_schema_is_served(gateway_url: str) -> None:
    assert httpx.get(f"{gateway_url}/openapi.json").json()["openapi"].startswith("3.")
