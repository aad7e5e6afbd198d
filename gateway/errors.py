"""Every error as OpenAI's JSON, `{"error": {message, type, param, code}}`, with its HTTP status and Retry-After.

`ANSWERS` is the one table: the code of an error decides its status. Raise `InvalidRequest` for a wrong field, and
`GatewayError` with a code of the table for what the gateway itself refuses.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from vita_audio.contract.errors import InvalidRequest, VitaError

_log = logging.getLogger(__name__)
WRONG, DENIED, LIMITED, BROKEN = "invalid_request_error", "authentication_error", "rate_limit_error", "server_error"


@dataclass(frozen=True, slots=True)
class Answer:
    """How an error is answered.

    `retry_after_s` None: the same request would fail again at once. `says` replaces a text that names addresses behind
    the gateway; that one goes to the log.
    """

    status: int
    type: str
    retry_after_s: int | None = None
    says: str = ""


ANSWERS: dict[str, Answer] = {
    # of the request
    "invalid_request": Answer(400, WRONG),
    "invalid_api_key": Answer(401, DENIED),
    "origin_not_allowed": Answer(403, DENIED),
    "not_found": Answer(404, WRONG),
    "model_not_found": Answer(404, WRONG),
    "audio_not_found": Answer(404, WRONG),
    "method_not_allowed": Answer(405, WRONG),
    "request_timeout": Answer(408, WRONG),
    "body_too_large": Answer(413, WRONG),
    "caller_left": Answer(499, WRONG),
    "rate_limit_exceeded": Answer(429, LIMITED, 1),
    "insufficient_quota": Answer(429, LIMITED, 60),
    # nothing is wrong with it: later, or elsewhere
    "server_full": Answer(503, BROKEN, 1),
    "shutting_down": Answer(503, BROKEN, 5),
    "unhealthy": Answer(503, BROKEN, 5),
    "not_ready": Answer(503, BROKEN, 5, "the server is not ready yet; try again in a few seconds"),
    "unavailable": Answer(503, BROKEN, 1, "no server answers; try again in a few seconds"),
    "client_closed": Answer(503, BROKEN, 5, "the gateway is shutting down; try again later"),
    # between gateway and server
    "access_denied": Answer(502, BROKEN, None, "the server refuses this gateway; its operator has to act"),
    "bad_response": Answer(502, BROKEN, None, "gateway and server do not fit together; its operator has to act"),
    "stream_broken": Answer(502, BROKEN, 1, "the server went away before the answer was complete; try again"),
    "deadline_exceeded": Answer(504, BROKEN),
}
#: Any other code: a fault of server or gateway.
FAULT = Answer(500, BROKEN)
_HTTP_CODES = {404: "not_found", 405: "method_not_allowed"}


class GatewayError(VitaError):
    """What the gateway itself refuses; `code` is one of `ANSWERS`, `field` becomes `param`.

    `retry_after_s` replaces that of the table.
    """

    def __init__(self, message: str, *, code: str, field: str = "", retry_after_s: int | None = None) -> None:
        super().__init__(message, code=code, field=field)
        self.retry_after_s = retry_after_s


def error_body(message: str, type: str, code: str, param: str | None = None) -> dict[str, Any]:
    """OpenAI's form of an error."""
    return {"error": {"message": message, "type": type, "param": param, "code": code}}


def body_of(error: VitaError) -> dict[str, Any]:
    """OpenAI's form of an error of this project; also for an event in the middle of a stream."""
    answer = ANSWERS.get(error.code, FAULT)
    if answer.says:
        _log.warning("server error", extra={"code": error.code, "reason": str(error)})
    return error_body(answer.says or str(error), answer.type, error.code, error.field.lower() or None)


def response_of(error: VitaError) -> JSONResponse:
    """The answer to a request that failed before its answer began."""
    answer = ANSWERS.get(error.code, FAULT)
    retry_after_s = getattr(error, "retry_after_s", None) or answer.retry_after_s
    headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
    if answer.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(body_of(error), answer.status, headers)


def invalid(error: RequestValidationError) -> GatewayError:
    """The first of the errors that pydantic found, as one line."""
    first = error.errors()[0]
    place = () if first["type"] == "json_invalid" else first["loc"]
    field = ".".join(str(part) for part in place if part not in ("body", "query", "path", "header")) or "body"
    return GatewayError(f"{field}: {first['msg']}", code=InvalidRequest.default_code, field=field)


def add_handlers(app: FastAPI) -> None:
    """From now on every error of a route is answered in this form."""

    def refused(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, VitaError)
        return response_of(error)

    def not_valid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return response_of(invalid(error))

    def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        code = _HTTP_CODES.get(error.status_code, "invalid_request" if error.status_code < 500 else "internal_error")
        kind = WRONG if error.status_code < 500 else BROKEN
        return JSONResponse(error_body(str(error.detail), kind, code), error.status_code, error.headers)

    def fault(request: Request, error: Exception) -> JSONResponse:
        return response_of(VitaError("internal error of the gateway; its log says more"))

    app.add_exception_handler(VitaError, refused)
    app.add_exception_handler(RequestValidationError, not_valid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, fault)
