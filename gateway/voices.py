"""Names: of the one model, and of its one voice, which answers to those of OpenAI's voices too."""

from __future__ import annotations

from gateway.errors import GatewayError
from vita_audio.contract.errors import InvalidRequest

MODEL = "vita-audio"
VOICE = "vita"
#: Clients refuse to send any other name (pipecat), or have one of them as their default.
OPENAI_VOICES = tuple("alloy ash ballad cedar coral echo fable marin nova onyx sage shimmer verse".split())


def check_model(name: str) -> None:
    """Raises: GatewayError: `model_not_found`."""
    if name != MODEL:
        raise GatewayError(f"model: there is no {name[:60]!r}, only {MODEL}", code="model_not_found", field="model")


def check_voice(name: str) -> None:
    """Raises: InvalidRequest: field voice."""
    if name != VOICE and name not in OPENAI_VOICES:
        names = ", ".join(OPENAI_VOICES)
        raise InvalidRequest("voice", name, f"it is {VOICE}, or a name of OpenAI's, all the same voice: {names}")
