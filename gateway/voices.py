"""Names: of the one model, and of its one voice, which answers to those of OpenAI's voices too."""

from __future__ import annotations

from gateway.errors import GatewayError
from vita_audio.contract.errors import InvalidRequest
from vita_audio.contract.modes import NAMED_MODES

MODEL = "vita-audio"
VOICE = "vita"
#: Clients refuse to send any other name (pipecat), or have one of them as their default.
OPENAI_VOICES = tuple("alloy ash ballad cedar coral echo fable marin nova onyx sage shimmer verse".split())


def check_model(name: str) -> None:
    """The name may end with a decoding mode, see `mode_of`. Raises: GatewayError: `model_not_found`."""
    if name not in (MODEL, *(f"{MODEL}-{mode}" for mode in NAMED_MODES)):
        modes = ", ".join(NAMED_MODES)
        text = f"model: there is no {name[:60]!r}, only {MODEL}, and {MODEL}-MODE with one of {modes}"
        raise GatewayError(text, code="model_not_found", field="model")


def mode_of(model: str) -> str | None:
    """The decoding mode that the name of a model ends with (`vita-audio-turbo`); None: the server's default."""
    ending = model.rpartition("-")[2]
    return ending if ending in NAMED_MODES else None


def check_voice(name: str) -> None:
    """Raises: InvalidRequest: field voice."""
    if name != VOICE and name not in OPENAI_VOICES:
        names = ", ".join(OPENAI_VOICES)
        raise InvalidRequest("voice", name, f"it is {VOICE}, or a name of OpenAI's, all the same voice: {names}")
