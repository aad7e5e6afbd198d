"""What the adapters in `model_repository/` share: engines, tensors and errors. Runs inside Triton's Python stubs only.

Nothing may be raised out of `execute`: the caller would see a traceback, and the reply would not say what to do.
"""

from __future__ import annotations

import logging

import numpy as np
import triton_python_backend_utils as pb_utils  # exists in the stub only
from numpy.typing import NDArray

from serving.settings import ServingSettings
from vita_audio.contract.errors import InvalidRequest, ServerFull, ServerStopping, VitaError
from vita_audio.engines.manifest import Manifest, load_manifest
from vita_audio.engines.registry import EngineSource

#: The flag of the last response to a request of a decoupled model.
FINAL: int = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL

log = logging.getLogger(__name__)


def start_logging(model: str) -> None:
    """Send the log of this model process to the server's log, under the model's name."""
    logging.basicConfig(level=logging.INFO, format=f"%(levelname)s {model}: %(message)s")


def read(request: pb_utils.InferenceRequest, name: str) -> NDArray | None:
    """An input as an array (strings as an object array of bytes), None when it was not sent."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy()


def read_text(request: pb_utils.InferenceRequest, name: str) -> str | None:
    """The one string of an input, None when it was not sent.

    Raises:
        InvalidRequest: it is not UTF-8.
    """
    value = read(request, name)
    if value is None:
        return None
    try:
        return str(value.reshape(-1)[0].decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InvalidRequest(name, value.reshape(-1)[0], f"byte {error.start} is not UTF-8", "send UTF-8") from error


def text_tensor(name: str, text: str) -> pb_utils.Tensor:
    """A STRING[1] tensor."""
    return pb_utils.Tensor(name, np.array([text.encode("utf-8")], dtype=np.object_))


def error_response(error: Exception) -> pb_utils.InferenceResponse:
    """An error as one line with a code; what was not raised on purpose goes to the log with its traceback."""
    if isinstance(error, InvalidRequest):
        code = pb_utils.TritonError.INVALID_ARG
    elif isinstance(error, (ServerFull, ServerStopping)):
        code = pb_utils.TritonError.UNAVAILABLE
    else:
        code = pb_utils.TritonError.INTERNAL
    if isinstance(error, VitaError):
        text = str(error)
    else:
        log.error("request failed", exc_info=error)
        text = f"internal error: {type(error).__name__}: {error}"
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(" ".join(text.split()), code))


def served_engines() -> tuple[ServingSettings, Manifest, EngineSource]:
    """What every model process opens: the server's settings, the manifest, and where the engines are.

    Raises:
        EngineError: the server was started without engines, or their manifest cannot be read.
    """
    settings = ServingSettings.from_environment()
    manifest = load_manifest(settings.engines)
    source = EngineSource(
        settings.engines,
        manifest.sizes,
        manifest.limits.context_tokens,
        manifest.gpu,
        settings.threads,
        settings.device,
    )
    return settings, manifest, source
