"""What the paper's tables are measured in, side by side in one run: kernels on and off, weights in bf16 and FP8."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.paper_language_model import LanguageModelBench, Served
from benchmarks.roofline import BF16, FLOAT32, Formats, ModelSize, Peaks, work
from vita_audio.engines.torch_cuda.kernels.names import NAMES
from vita_audio.engines.torch_cuda.weights import load_weights


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to serve a model."""

    kernels_off: frozenset[str] = frozenset()
    formats: Formats = BF16


#: "references" stands for the engine before it had kernels of its own but attention.
VARIANTS = {
    "kernels": Variant(),
    "references": Variant(kernels_off=frozenset(NAMES) - {"attention"}),
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
            variant = VARIANTS[name]
            formats = variant.formats if self._on_gpu else FLOAT32
            off = variant.kernels_off | self._off | also_off
            bench = LanguageModelBench(
                name, self._size, self._weights, self._peaks, work(self._size, formats), self._served, off
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
