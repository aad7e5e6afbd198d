"""Every tiling of matrix products, compiled ahead of time as GPUs with and without FP8 take it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from vita_audio.engines.torch_cuda.kernels.linear_tiling import Product

#: Of a 7B: K is split or not, and what follows needs the most registers.
PRODUCTS = [Product(37888, 3584, gate=True), Product(3584, 18944, residual=True)]


@pytest.mark.skipif(
    not importlib.util.find_spec("triton"), reason="the GPU language Triton is not installed (extra gpu-check)"
)
@pytest.mark.parametrize(("capability", "fp8"), [(90, False), (90, True), (80, True)])
def test_every_tiling_fits_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capability: int, fp8: bool) -> None:
    """Some 10 kernels, a second each: a tiling that spills would be measured slow, and be noticed nowhere else."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from benchmarks.gpu_kernels import GPUS, linear_kernels, shortcomings

    gpu = next(one for one in GPUS if one.capability == capability)
    kernels = linear_kernels(gpu, [product._replace(fp8=fp8) for product in PRODUCTS])
    assert {one.constants["GATE"] for one in kernels} == {False, True}
    assert {one.constants["ARITHMETIC"] for one in kernels} == {fp8 and capability < 89}
    assert [shortcomings(one, gpu) for one in kernels] == [[]] * len(kernels)
