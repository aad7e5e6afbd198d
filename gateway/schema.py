"""The OpenAPI description at /openapi.json: errors and keys as they are, not as FastAPI would have them."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from gateway.guard import KEPT


class ErrorDetail(BaseModel):
    """`code` is for programs, `message` for people; `param` is the field at fault."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(BaseModel):
    error: ErrorDetail


_ERROR = {
    "description": "Refused or failed; the table of codes is in docs/gateway.md",
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}},
}


def describe(app: FastAPI) -> None:
    """From now on the app describes itself in this way."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _described(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _described(app: FastAPI) -> dict[str, Any]:
    schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            # Wrong fields are answered like every other error (`gateway/errors.py`).
            operation["responses"].pop("422", None)
            operation["responses"]["default"] = _ERROR
            if path.startswith(KEPT):
                operation["security"] = [{"key": []}]
    components = schema.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    schemas["ErrorBody"] = ErrorBody.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= schemas["ErrorBody"].pop("$defs")
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return schema
