"""What runs one engine call (`reference_executor.py`, `session.py`); everything before and after it is shared.

`inputs` hold the tensors that the engine of that name reads (`tensors.BACKBONE_INPUTS`, `tensors.MCTP_INPUTS`), each
where `TensorSpec.place` says. Calls are enqueued in order on one stream and return without waiting for the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor

from vita_audio.engines.tensorrt_llm.layout import Layout

Tensors = Mapping[str, Tensor]


class Executor(Protocol):
    layout: Layout
    device: torch.device
    hidden_dtype: torch.dtype
    kv_dtype: torch.dtype

    def stream(self) -> AbstractContextManager[object]:
        """The stream that the engine calls and everything around them are enqueued on."""
        ...

    def backbone(self, inputs: Tensors) -> tuple[Tensor, Tensor]:
        """(logits float32 [streams, vocab] of each row's last token, hidden states H0 [tokens, hidden]).

        The results may be overwritten by the next call.
        """
        ...

    def mctp(self, inputs: Tensors) -> Tensor:
        """Token ids [streams, K]: what each module sampled, or its forced token; the next call may overwrite them."""
        ...
