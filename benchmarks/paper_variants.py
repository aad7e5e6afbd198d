"""What the paper's tables are measured in, side by side in one run: kernels on and off, weights in bf16 and FP8."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.paper_language_model import LanguageModelBench, Served
from benchmarks.roofline import BF16, FLOAT32, FP8_PARTS, Formats, ModelSize, Peaks, work
from vita_audio.engines.torch_cuda.kernels.names import NAMES
from vita_audio.engines.torch_cuda.weights import LayerWeights, Weights, load_weights


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to serve a model."""

    kernels_off: frozenset[str] = frozenset()
    formats: Formats = BF16


#: All that can be FP8: layers, projections, the head of the MCTP modules. The backbone's head and norms are not.
FP8 = BF16._replace(**dict.fromkeys(FP8_PARTS, "fp8"))
#: "references" stands for the engine before it had kernels of its own but attention.
VARIANTS = {
    "kernels": Variant(),
    "references": Variant(kernels_off=frozenset(NAMES) - {"attention"}),
    "fp8": Variant(formats=FP8),
}


class Variants:
    """Benches of the asked variants over one model; an engine's memory is freed before the next one's is taken.

    Args:
        names: of `VARIANTS`; the first one is what parts measure that compare nothing.
        size, tensors, device: the model, and where it runs.
        peaks: of the device in this run.
        served: of every engine.
        kernels_off: in all variants.
    """

    def __init__(
        self,
        names: list[str],
        size: ModelSize,
        tensors: Mapping[str, Tensor],
        device: torch.device,
        peaks: Peaks,
        served: Served,
        kernels_off: frozenset[str],
    ) -> None:
        self.names, self._size, self._peaks, self._served, self._off = names, size, peaks, served, kernels_off
        self._on_gpu = device.type == "cuda"
        self._weights = load_weights(size.config, tensors, device, torch.bfloat16 if self._on_gpu else torch.float32)
        self._benches: dict[str, LanguageModelBench] = {}

    def bench(self, name: str, also_off: frozenset[str] = frozenset()) -> LanguageModelBench:
        """The bench of a variant; `also_off` makes one that is not kept."""
        bench = self._benches.get(name)
        if bench is None or also_off:
            variant, weights = VARIANTS[name], self._weights
            formats = variant.formats if self._on_gpu or variant.formats is FP8 else FLOAT32
            if variant.formats is FP8:
                formats, weights = formats._replace(state="bf16" if self._on_gpu else "float32"), in_fp8(weights)
            off = variant.kernels_off | self._off | also_off
            bench = LanguageModelBench(
                name, self._size, weights, self._peaks, work(self._size, formats), self._served, off
            )
            if not also_off:
                self._benches[name] = bench
        for other in self._benches.values():
            if other is not bench:
                other.close()
        return bench

    @property
    def first(self) -> LanguageModelBench:
        return self.bench(self.names[0])

    def __iter__(self) -> Iterator[LanguageModelBench]:
        return (self.bench(name) for name in self.names)

    def one_off(self) -> Iterator[tuple[str, LanguageModelBench]]:
        """The first variant with all of its kernels, without each one of them, and without all."""
        yield "nothing", self.first
        for name in NAMES:
            yield name, self.bench(self.names[0], frozenset({name}))
        yield "all of these", self.bench(self.names[0], frozenset(NAMES))


def in_fp8(weights: Weights) -> Weights:
    """The same model with every matrix but the backbone's head and the embedding in FP8."""
    from vita_audio.engines.torch_cuda.fp8 import Matrix, quantise

    def small(matrix: Matrix) -> Matrix:
        return quantise(matrix) if isinstance(matrix, Tensor) else matrix

    def layer(w: LayerWeights) -> LayerWeights:
        return w._replace(
            qkv=small(w.qkv), output=small(w.output), gate_up=small(w.gate_up), down=small(w.down)
        )  # fmt: skip

    modules = tuple(m._replace(projection=small(m.projection), layer=layer(m.layer)) for m in weights.modules)
    return weights._replace(
        layers=tuple(map(layer, weights.layers)), modules=modules, mctp_head=small(weights.mctp_head)
    )
