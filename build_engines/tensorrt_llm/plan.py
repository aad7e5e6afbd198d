"""One checkpoint to write: which tensors each rank holds, made from released ones, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod

import torch
from torch import Tensor

from build_engines.tensorrt_llm.formats import FORMATS, Format, Fp8
from build_engines.tensorrt_llm.layout import Module, Part, Split, modules
from build_engines.tensorrt_llm.split import TensorParallel
from vita_audio.checkpoint.configs import LanguageModelConfig
from vita_audio.checkpoint.language_model import language_model_shapes
from vita_audio.checkpoint.weight_files import Shapes
from vita_audio.contract.errors import CheckpointError, EngineError

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
KV_CACHE = "kv_cache_scaling_factor"

Outline = dict[str, tuple[tuple[int, ...], torch.dtype]]  # tensor -> shape, dtype


@dataclass(frozen=True)
class Plan:
    """A part of a released checkpoint of size `config`, in `dtype`, for `tp` ranks.

    Args:
        linear_format: how linear layers are stored; embedding, norms, biases and head stay in `dtype`.
        fp8_kv_cache: store a scale for the KV cache of each layer.
        head_first_id: MCTP only; the head keeps the rows from this token id on (audio-only head).
    """

    part: Part
    config: LanguageModelConfig
    dtype: str = "bfloat16"
    tp: int = 1
    linear_format: Format = field(default_factory=lambda: FORMATS["none"])
    fp8_kv_cache: bool = False
    head_first_id: int = 0

    @cached_property
    def modules(self) -> list[Module]:
        return modules(self.part, self.config)

    @cached_property
    def ranks(self) -> TensorParallel:
        return TensorParallel(self.tp, self.config)

    @property
    def layers(self) -> int:
        """Decoder layers of this part."""
        return self.config.backbone_layers if self.part is Part.BACKBONE else self.config.mctp_modules

    @cached_property
    def outline(self) -> list[Outline]:
        """What the file of each rank holds, in order."""
        sources = language_model_shapes(self.config)
        scales = {name: torch.empty(shape, device="meta") for name, shape in self.scale_shapes.items()}
        ranks: list[Outline] = [{} for _ in range(self.tp)]
        for module in self.modules:
            encoded = self.encode(module, lambda key: torch.empty(sources[key], device="meta"), scales)
            for outline, tensors in zip(ranks, encoded, strict=True):
                outline |= {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
        return ranks

    @property
    def bytes(self) -> int:
        """Of all ranks' tensors."""
        return sum(prod(shape) * dtype.itemsize for rank in self.outline for shape, dtype in rank.values())

    @cached_property
    def scale_shapes(self) -> Shapes:
        """Key -> shape of every scale that must be given."""
        sources = language_model_shapes(self.config)
        shapes: Shapes = {}
        for module in self.modules:
            for source in module.sources if module.linear else ():
                rows, columns = sources[f"{source}.weight"]
                own = self.linear_format.scale_shapes(rows, columns)
                shapes |= {f"{source}.{name}": shape for name, shape in own.items()}
            if self.fp8_kv_cache and module.split is Split.HEADS:
                shapes[_kv_cache_source(module)] = ()
        return shapes

    def check(self) -> None:
        """Raise EngineError when this cannot be converted as asked, CheckpointError when there is nothing there."""
        if self.dtype not in DTYPES:
            raise EngineError(f"--dtype: {self.dtype!r} is not valid: choose one of {', '.join(DTYPES)}")
        if not self.layers:
            raise CheckpointError(
                "config.json: num_nextn_predict_layers is 0: this checkpoint has no MCTP modules to convert; "
                "convert what it has with --part backbone"
            )
        self.ranks.check()
        if not 0 <= self.head_first_id < self.config.vocab_size:
            raise EngineError(
                f"--mctp-head-from: {self.head_first_id} is not valid: a token id, 0 to {self.config.vocab_size - 1}"
            )
        if self.fp8_kv_cache and not isinstance(self.linear_format, Fp8):
            raise EngineError(
                f"--fp8-kv-cache: needs fp8 weights in both parts, which share one cache, but {self.part.value} is "
                f"{self.linear_format.name}; use fp8 for both or leave it out"
            )
        multiple = self.linear_format.multiple(self.tp)
        for module in self.modules:
            if module.linear:
                rows, columns = self._size(module)
                if rows % multiple or columns % multiple:
                    raise EngineError(
                        f"{module.name}: {rows} x {columns} must be a multiple of {multiple} both ways for "
                        f"{self.linear_format.name} on {self.tp} GPU(s); choose a smaller --tp or another format"
                    )

    def encode(
        self, module: Module, read: Callable[[str], Tensor], scales: Mapping[str, Tensor]
    ) -> list[dict[str, Tensor]]:
        """Tensors of one module for each rank, under their full names.

        Args:
            read: gives a released tensor by its key.
            scales: what `scale_shapes` names.

        Raises:
            CheckpointError: a value does not fit the dtype.
        """

        def read_cast(key: str) -> Tensor:
            return _cast(read(key), DTYPES[self.dtype], key)

        form = self._format(module)
        quantised = form.algorithm is not None
        names = [f"{source}.weight" for source in module.sources]
        others = [source for source in module.shares if source not in module.sources]
        own_scales = [
            {name: scales[f"{source}.{name}"] for name in form.scale_shapes(1, 1)}
            for source in (*module.sources, *others)
        ]
        weights = [read(name) if quantised else read_cast(name) for name in names]
        if module.split is Split.VOCABULARY:
            weights = [weight[self.head_first_id :] for weight in weights]
        parts = form.encode(module.split, weights, own_scales, self.ranks, DTYPES[self.dtype])
        if module.bias:
            biases = self.ranks.split(module.split, [read_cast(f"{source}.bias") for source in module.sources])
            parts = [part | {"bias": bias} for part, bias in zip(parts, biases, strict=True)]
        encoded = [{f"{module.name}.{end}": tensor for end, tensor in part.items()} for part in parts]
        if self.fp8_kv_cache and module.split is Split.HEADS:
            value = scales[_kv_cache_source(module)].float().view(1)
            encoded = [tensors | {_kv_cache_name(module): value} for tensors in encoded]
        return encoded

    def decode(self, module: Module, ranks: Sequence[Mapping[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """The inverse of `encode`: released keys and tensors of one module (float32 where it was quantised).

        Of a head that was cut only its own rows.
        """
        form, prefix = self._format(module), f"{module.name}."
        parts = [
            {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
            for tensors in ranks
        ]
        weights = self.ranks.merge(module.split, [form.decode(part) for part in parts])
        if module.split is Split.VOCABULARY:
            weights = [weight[: self.config.vocab_size - self.head_first_id] for weight in weights]
        yield from zip((f"{source}.weight" for source in module.sources), weights, strict=True)
        if module.bias:
            biases = self.ranks.merge(module.split, [part["bias"] for part in parts])
            yield from zip((f"{source}.bias" for source in module.sources), biases, strict=True)

    def is_quantised(self, module: Module) -> bool:
        return self._format(module).algorithm is not None

    def _format(self, module: Module) -> Format:
        return self.linear_format if module.linear else FORMATS["none"]

    def _size(self, module: Module) -> tuple[int, int]:
        """Rows and columns of a module over all ranks, repeated KV heads counted."""
        sources = language_model_shapes(self.config)
        weights = [torch.empty(sources[f"{source}.weight"], device="meta") for source in module.sources]
        rows, columns = self.ranks.split(module.split, weights)[0].shape
        return (rows, columns * self.tp) if module.split is Split.COLUMNS else (rows * self.tp, columns)


def _cast(tensor: Tensor, dtype: torch.dtype, key: str) -> Tensor:
    result = tensor.to(dtype)
    if dtype is torch.float16 and not result.is_meta and not bool(result.isfinite().all()):
        raise CheckpointError(f"{key}: values beyond float16's {torch.finfo(dtype).max:.0f}; use --dtype bfloat16")
    return result


def _kv_cache_source(module: Module) -> str:
    return f"{module.sources[0].rpartition('.')[0]}.{KV_CACHE}"


def _kv_cache_name(module: Module) -> str:
    return f"{module.name.rpartition('.')[0]}.{KV_CACHE}"
