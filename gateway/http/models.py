"""`GET /v1/models`, and the lists that Open WebUI asks for."""

from __future__ import annotations

from fastapi import APIRouter

from gateway.voices import MODEL, OPENAI_VOICES, VOICE, check_model

router = APIRouter(tags=["models"])
_MODEL = {"id": MODEL, "object": "model", "created": 0, "owned_by": "vita"}


@router.get("/v1/models")
async def models() -> dict[str, object]:
    """The one model, for every path."""
    return {"object": "list", "data": [_MODEL]}


@router.get("/v1/models/{model}")
async def model(model: str) -> dict[str, object]:
    """It has the name that was asked for, of a decoding mode too."""
    check_model(model)
    return {**_MODEL, "id": model}


@router.get("/v1/audio/models")
async def audio_models() -> dict[str, object]:
    return {"models": [{"id": MODEL}]}


@router.get("/v1/audio/voices")
async def voices() -> dict[str, object]:
    """All of them are the same voice."""
    return {"voices": [{"id": name, "name": name} for name in (VOICE, *OPENAI_VOICES)]}
