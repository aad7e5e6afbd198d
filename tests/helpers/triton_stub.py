"""Stands for `triton_python_backend_utils`, which exists inside Triton's Python stubs only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np


class TritonError(Exception):
    INVALID_ARG, UNAVAILABLE, INTERNAL = "INVALID_ARG", "UNAVAILABLE", "INTERNAL"

    def __init__(self, text: str, code: str = INTERNAL) -> None:
        super().__init__(text)
        self._text, self._code = text, code

    def message(self) -> str:
        return self._text

    def code(self) -> str:
        return self._code


class Tensor:
    def __init__(self, name: str, values: np.ndarray) -> None:
        self._name, self._values = name, values

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._values


class InferenceResponse:
    def __init__(self, output_tensors: Sequence[Tensor] = (), error: TritonError | None = None) -> None:
        self.tensors, self._error = {tensor.name(): tensor for tensor in output_tensors}, error

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error


class Sender:
    """Notes what is sent, with its flags."""

    def __init__(self) -> None:
        self.sent: list[tuple[InferenceResponse | None, int]] = []
        self.cancelled = False

    def is_cancelled(self) -> bool:
        return self.cancelled

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        self.sent.append((response, flags))


class InferenceRequest:
    """A request as a model gets it, or a call of a model, which `triton_stub` answers."""

    answer: Callable[[InferenceRequest], InferenceResponse]

    def __init__(
        self, model_name: str = "", inputs: Sequence[Tensor] = (), requested_output_names: Any = (), own_id: str = ""
    ) -> None:
        self.model_name, self.tensors = model_name, {tensor.name(): tensor for tensor in inputs}
        self.requested, self.sender, self._own_id = list(requested_output_names), Sender(), own_id

    def request_id(self) -> str:
        return self._own_id

    def get_response_sender(self) -> Sender:
        return self.sender

    def is_cancelled(self) -> bool:
        return self.sender.cancelled

    def exec(self, decoupled: bool = False) -> Any:
        answer = type(self).answer(self)
        return iter([answer]) if decoupled else answer


def triton_stub(answer: Callable[[InferenceRequest], InferenceResponse]) -> ModuleType:
    """The module; `answer` stands for the models that are called."""

    def named(holder: Any, name: str) -> Tensor | None:
        tensors: Mapping[str, Tensor] = holder.tensors
        return tensors.get(name)

    module = ModuleType("triton_python_backend_utils")
    calls = type("InferenceRequest", (InferenceRequest,), {"answer": staticmethod(answer)})
    for name, value in {
        "TRITONSERVER_RESPONSE_COMPLETE_FINAL": 1,
        "TritonError": TritonError,
        "Tensor": Tensor,
        "InferenceResponse": InferenceResponse,
        "InferenceResponseSender": Sender,
        "InferenceRequest": calls,
        "get_input_tensor_by_name": named,
        "get_output_tensor_by_name": named,
    }.items():
        setattr(module, name, value)
    return module
