"""The part of tensorrt_llm that the MCTP network is written in, computing with PyTorch: a network definition runs. And
the runtime's session, which computes nothing.

Shapes, types and plugins are what the dry run checks; this checks the numbers. Attention and the rest of a decoder
layer are the reference's own.
"""

from __future__ import annotations

import sys
import types
import zlib
from typing import Any

import numpy as np
import pytest
import torch

OUTPUTS: dict[str, torch.Tensor] = {}
#: Rows of each call of top-k.
SORTED_ROWS: list[int] = []
DTYPES = {"float32": torch.float32, "int32": torch.int32}


class Tensor(torch.Tensor):
    """A network tensor; marking an output keeps it."""

    def mark_output(self, name: str, dtype: Any) -> None:
        OUTPUTS[name] = self.as_subclass(torch.Tensor)


class Module:
    def __init__(self, *_: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)


class PretrainedModel(Module):
    def __init__(self, config: Any) -> None:
        self.config = config


class ColumnLinear(Module):
    def __init__(self, inputs: int, outputs: int, **_: Any) -> None:
        self.weight = torch.zeros(outputs, inputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight.T


class Embedding(Module):
    def __init__(self, rows: int, width: int, **_: Any) -> None:
        self.weight = torch.zeros(rows, width)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.weight[ids.long()].as_subclass(Tensor)


class RmsNorm(Module):
    def __init__(self, normalized_shape: int, eps: float, **_: Any) -> None:
        self.weight, self.eps = torch.ones(normalized_shape), eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.rms_norm(x, (len(self.weight),), self.weight, self.eps)


class QWenDecoderLayer(Module):
    """`reference` is a layer of `models.language_model`, set by the test."""

    reference: Any

    def __init__(self, config: Any, index: int) -> None:
        self.index = index

    def forward(self, x: torch.Tensor, use_cache: bool, kv_cache_params: Any, attention_params: Any) -> Any:
        return self.reference(x, attention_params.cos, attention_params.sin, attention_params.attend), None


class Attention:
    @staticmethod
    def create_attention_const_params(model: Any, config: Any) -> None:
        pass

    @staticmethod
    def fill_attention_params(model: Any, params: Any) -> Any:
        return params


def topk(x: torch.Tensor, k: int, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    SORTED_ROWS.append(len(x))
    values, ids = x.topk(k, dim)
    return values, ids.int()


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the double where the networks import from, and forget networks imported before and what they did."""
    OUTPUTS.clear()
    SORTED_ROWS.clear()
    functional = {
        "Tensor": Tensor,
        "argmax": lambda x, dim, keepdim: x.argmax(dim, keepdim=keepdim),
        "cast": lambda x, dtype: x.to(DTYPES[dtype]),
        "concat": lambda parts, dim=0: torch.cat(list(parts), dim),
        "constant": lambda value: torch.from_numpy(value).as_subclass(Tensor),
        "eq": torch.eq,
        "gather": lambda x, dim, index: torch.gather(x, dim, index.long()),
        "gather_last_token_logits": lambda x, last, remove_input_padding: x[last.long() - 1],
        "gt": torch.gt,
        "index_select": lambda x, dim, index: torch.index_select(x, dim, index.long()),
        "lt": torch.lt,
        "minimum": torch.minimum,
        "op_or": torch.logical_or,
        "select": torch.select,
        "softmax": torch.softmax,
        "sum": lambda x, dim, keepdim=False: x.sum(dim, keepdim=keepdim),
        "topk": topk,
        "unsqueeze": torch.unsqueeze,
        "view": lambda x, shape: x.reshape(shape),
        "where": torch.where,
    }
    layers = {
        "Attention": Attention, "AttentionParams": object, "ColumnLinear": ColumnLinear, "Embedding": Embedding,
        "KeyValueCacheParams": object, "RmsNorm": RmsNorm,
    }  # fmt: skip
    modules: dict[str, dict[str, Any]] = {
        "tensorrt": {"int32": torch.int32},
        "tensorrt_llm": {},
        "tensorrt_llm._utils": {
            "pad_vocab_size": lambda rows, ranks: -(-rows // ranks) * ranks,
            "str_dtype_to_trt": DTYPES.__getitem__,
        },
        "tensorrt_llm.functional": functional,
        "tensorrt_llm.layers": layers,
        "tensorrt_llm.models": {},
        "tensorrt_llm.models.modeling_utils": {"PretrainedModel": PretrainedModel},
        "tensorrt_llm.models.qwen": {},
        "tensorrt_llm.models.qwen.config": {"QWenConfig": types.SimpleNamespace},
        "tensorrt_llm.models.qwen.model": {"QWenDecoderLayer": QWenDecoderLayer},
        "tensorrt_llm.module": {"Module": Module, "ModuleList": list},
    }
    for name, attributes in modules.items():
        module = types.ModuleType(name)
        module.__dict__.update(attributes)
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("mctp", "sampling"):
        monkeypatch.delitem(sys.modules, f"build_engines.tensorrt_llm.networks.{name}", raising=False)


def tensor(value: np.ndarray | torch.Tensor | list) -> torch.Tensor:
    return torch.as_tensor(value).as_subclass(Tensor)


class Session:
    """`tensorrt_llm.runtime.Session` as far as an engine is loaded and enqueued: it keeps what it was given."""

    inputs: tuple[str, ...] = ()
    made: list[Session] = []  # noqa: RUF012

    def __init__(self, plan: Any) -> None:
        if bytes(plan[:6]) == b"broken":
            raise AttributeError("'NoneType' object has no attribute 'streamable_weights_size'")  # as TensorRT-LLM does
        self.plan, self.bytes = plan, len(plan)
        self.checksum = zlib.crc32(plan)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        Session.made.append(self)

    @classmethod
    def from_serialized_engine(cls, plan: Any) -> Session:
        return cls(plan)

    @property
    def engine(self) -> Any:
        return types.SimpleNamespace(
            num_io_tensors=len(self.inputs),
            get_tensor_name=lambda index: self.inputs[index],
            get_tensor_mode=lambda name: types.SimpleNamespace(name="INPUT"),
        )

    def set_shapes(self, tensors: dict[str, torch.Tensor]) -> None:
        self.shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}

    def run(self, inputs: dict[str, torch.Tensor], outputs: dict[str, torch.Tensor], stream: int) -> bool:
        self.addresses = {name: tensor.data_ptr() for name, tensor in {**inputs, **outputs}.items()}
        return True
