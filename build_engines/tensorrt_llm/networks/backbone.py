"""The backbone network: TensorRT-LLM's Qwen2 that also gives its final hidden states, which the MCTP modules read.

Outputs: `logits` float32 [streams, vocab] of each stream's last token, `hidden_states_all` [tokens, hidden].
"""

from __future__ import annotations

from typing import Any

from tensorrt_llm.models import QWenForCausalLM

HIDDEN_STATES = "hidden_states_all"


class VitaBackbone(QWenForCausalLM):
    """Qwen2 with one output more. The hidden states are those after the final norm: H0 of docs/model.md."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        logits, last, hidden = super().forward(*args, **kwargs)
        hidden.mark_output(HIDDEN_STATES, self.config.dtype)  # [tokens, hidden]
        return logits, last, hidden
