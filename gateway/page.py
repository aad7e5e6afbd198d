"""The web page: `gateway/web/` as it is, at `/` and `/web/...`. Nothing is built, nothing comes from elsewhere."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from starlette.responses import FileResponse

from gateway.errors import GatewayError

_FOLDER = Path(__file__).parent / "web"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
#: What there is: a name that a caller sends is never made into a path.
_FILES = {path.name: path for path in _FOLDER.iterdir() if path.suffix in _TYPES}
_HEADERS = {
    # The page's own files, its own gateway, and nothing else; no script or style in the page itself.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    # A page whose modules are of two versions would break.
    "Cache-Control": "no-cache",
}

router = APIRouter(include_in_schema=False)


@router.get("/")
async def page() -> FileResponse:
    """The page to talk to."""
    return _file("index.html")


@router.get("/web/{name}")
async def file(name: str) -> FileResponse:
    """A file of the page."""
    return _file(name)


def _file(name: str) -> FileResponse:
    if name not in _FILES:
        raise GatewayError(f"there is no file {name[:100]!r} of the page", code="not_found")
    path = _FILES[name]
    return FileResponse(path, media_type=_TYPES[path.suffix], headers=_HEADERS)
