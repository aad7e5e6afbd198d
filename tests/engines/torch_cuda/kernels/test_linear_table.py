"""Which products run by the kernel: measured, kept, measured again; without a GPU."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vita_audio.checkpoint.configs import LanguageModelConfig
from vita_audio.checkpoint.language_model import language_model_shapes
from vita_audio.engines.torch_cuda.fp8 import Fp8Matrix, Matrix, quantise
from vita_audio.engines.torch_cuda.kernels import linear, linear_table
from vita_audio.engines.torch_cuda.kernels.linear import Launches
from vita_audio.engines.torch_cuda.kernels.linear_tiling import FEW_ROWS, Product, Tiling, few_rows
from vita_audio.engines.torch_cuda.weights import load_weights

PROCESSORS = 8
PLAIN, GATED, ADDED = Product(64, 32), Product(128, 32, gate=True), Product(64, 32, residual=True)
HERE, OTHER = "NVIDIA H100, torch 2.11, triton 3.6", "NVIDIA L4, torch 2.11, triton 3.6"


class Gpu:
    """Multiplies by PyTorch, and takes `seconds` of what was launched last, in all."""

    def __init__(self, seconds: Callable[[Product, int, Tiling | None], float]) -> None:
        self.seconds, self.timed = seconds, 0
        self.wrong: set[Tiling | None] = set()
        self.broken: set[Tiling | None] = set()
        self.full = False

    def multiply(
        self, product: Product, x: Tensor, weight: Matrix, residual: Tensor | None, tiling: Tiling | None
    ) -> Tensor:
        assert x.dtype == torch.bfloat16
        if self.full:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if tiling in self.broken:
            raise RuntimeError("no such\ninstruction")
        self.last = product, len(x), tiling
        made = linear.reference(x, weight, None, residual, product.gate)
        return made + 1 if tiling in self.wrong else made

    def timer(self, function: Callable[[], object]) -> float:
        self.timed += 1
        function()
        return self.seconds(*self.last)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "engines"
    made.mkdir()
    return made


def matrices(*products: Product) -> dict[Product, list[Matrix]]:
    torch.manual_seed(0)
    made: dict[Product, list[Matrix]] = {}
    for product in products:
        values = torch.randn(product.n, product.k)
        fp8 = Fp8Matrix(values.to(torch.float8_e4m3fn), torch.ones(product.n))
        made[product] = [fp8 if product.fp8 else values.bfloat16()] * 3
    return made


def second_is_best(product: Product, rows: int, tiling: Tiling | None) -> float:
    return 1.0 if tiling == few_rows(product, PROCESSORS)[1] else 2.0


def table(gpu: Gpu, folder: Path, *products: Product, key: str = HERE) -> linear_table.Table:
    return linear_table.table(matrices(*products), PROCESSORS, folder, key, gpu.multiply, gpu.timer)


def test_the_fastest_is_taken_and_kept(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    gpu = Gpu(second_is_best)
    expected = {product: few_rows(product, PROCESSORS)[1] for product in (PLAIN, GATED, ADDED)}
    assert table(gpu, folder, PLAIN, GATED, ADDED) == expected
    assert "3 of 3 kinds" in caplog.text
    assert str(folder / "linear_table.json") in caplog.text
    timed = gpu.timed
    assert timed == 2 * sum(1 + len(few_rows(product, PROCESSORS)) for product in expected)
    assert table(gpu, folder, PLAIN, GATED, ADDED) == expected
    assert table(gpu, folder, ADDED) == {ADDED: expected[ADDED]}
    assert gpu.timed == timed


def test_one_choice_for_one_row_and_for_all(folder: Path) -> None:
    """The first tiling wins with 1 row, the second loses less and wins with all."""
    first, second = few_rows(PLAIN, PROCESSORS)[:2]
    times = {(first, 1): 1.0, (first, FEW_ROWS): 5.0, (second, 1): 2.0, (second, FEW_ROWS): 2.0}
    gpu = Gpu(lambda product, rows, tiling: times.get((tiling, rows), 9.0) if tiling else 3.0)
    assert table(gpu, folder, PLAIN) == {PLAIN: second}


def test_cublas_where_it_is_faster_but_not_for_fp8(folder: Path) -> None:
    gpu = Gpu(lambda product, rows, tiling: 2.0 if tiling else 1.0)
    fp8 = PLAIN._replace(fp8=True)
    made = table(gpu, folder, PLAIN, fp8)
    assert made == {PLAIN: None, fp8: few_rows(fp8, PROCESSORS)[0]}
    timed = gpu.timed
    assert table(gpu, folder, PLAIN, fp8) == made
    assert gpu.timed == timed


def test_what_is_missing_is_measured_and_joins(folder: Path) -> None:
    gpu = Gpu(second_is_best)
    table(gpu, folder, PLAIN)
    timed = gpu.timed
    both = table(gpu, folder, PLAIN, GATED)
    assert gpu.timed - timed == 2 * (1 + len(few_rows(GATED, PROCESSORS)))
    timed = gpu.timed
    assert table(gpu, folder, GATED, PLAIN) == both
    assert gpu.timed == timed


def test_each_gpu_has_its_own(folder: Path) -> None:
    gpu, other = Gpu(second_is_best), Gpu(lambda product, rows, tiling: 2.0 if tiling else 1.0)
    made = table(gpu, folder, PLAIN)
    assert table(other, folder, PLAIN, key=OTHER) == {PLAIN: None}
    gpu.timed = 0
    assert table(gpu, folder, PLAIN) == made
    assert not gpu.timed


def entry(**changes: object) -> dict[str, object]:
    return {**PLAIN._asdict(), "tiling": list(few_rows(PLAIN, PROCESSORS)[0]), **changes}


@pytest.mark.parametrize(
    ("content", "logged"),
    [
        ("{", True),
        ("\xff", True),
        ("[]", True),
        ('{"format": 2, "gpus": {}}', True),
        ('{"format": 1, "gpus": []}', True),
        (json.dumps({"format": 1, "gpus": {HERE: [3]}}), True),
        (json.dumps({"format": 1, "gpus": {HERE: 3}}), True),
        (json.dumps({"format": 1, "gpus": {HERE: [entry(tiling=[1, 2])]}}), True),
        (json.dumps({"format": 1, "gpus": {HERE: [{"n": 3}]}}), True),
        (json.dumps({"format": 1, "gpus": {HERE: [entry(tiling=[16, 64, 128, 4, 4, 99])]}}), False),
        (json.dumps({"format": 1, "gpus": {HERE: [entry(tiling="16")]}}), True),
        (json.dumps({"format": 1, "gpus": {HERE: [entry(n=[1])]}}), True),
        (json.dumps({"format": 1, "gpus": {HERE: []}}), False),
    ],
)
def test_a_bad_file_is_measured_again(
    folder: Path, caplog: pytest.LogCaptureFixture, content: str, logged: bool
) -> None:
    path = folder / "linear_table.json"
    path.write_text(content, encoding="latin-1")
    gpu = Gpu(second_is_best)
    made = table(gpu, folder, PLAIN)
    assert made == {PLAIN: few_rows(PLAIN, PROCESSORS)[1]}
    assert bool(caplog.records) == logged
    assert all("\n" not in record.getMessage() for record in caplog.records)
    timed = gpu.timed
    assert table(gpu, folder, PLAIN) == made
    assert gpu.timed == timed


def test_a_folder_that_cannot_be_written(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file stands for the folder, so that root cannot write there either."""
    caplog.set_level(logging.INFO)
    gpu, folder = Gpu(second_is_best), tmp_path / "file" / "engines"
    folder.parent.write_text("")
    made = table(gpu, folder, PLAIN)
    assert (cache / "linear_table.json").is_file()
    assert str(cache) in caplog.text
    timed = gpu.timed
    assert table(gpu, folder, PLAIN) == made
    assert gpu.timed == timed
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "file" / "cache"))
    assert table(gpu, folder, PLAIN) == made
    assert gpu.timed == 2 * timed
    assert "kept nowhere" in caplog.text


def test_a_tiling_that_is_wrong_or_does_not_run_is_not_taken(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second, third = few_rows(PLAIN, PROCESSORS)[:3]
    order = {first: 1.0, second: 2.0, third: 3.0}
    gpu = Gpu(lambda product, rows, tiling: order.get(tiling, 4.0) if tiling else 5.0)
    gpu.wrong, gpu.broken = {first}, {second}
    assert table(gpu, folder, PLAIN) == {PLAIN: third}
    wrong, broken = (record.getMessage() for record in caplog.records)
    assert "differ" in wrong
    assert "no such instruction" in broken
    gpu.wrong = set(few_rows(GATED, PROCESSORS))
    assert table(gpu, folder, GATED) == {GATED: None}


def test_an_fp8_product_without_a_right_tiling_takes_its_reference(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gpu, fp8 = Gpu(second_is_best), PLAIN._replace(fp8=True)
    tilings = few_rows(fp8, PROCESSORS)
    gpu.wrong, gpu.broken = set(tilings[1:]), {tilings[0]}
    made = table(gpu, folder, fp8)
    assert made == {fp8: None}
    assert "no tiling that is right" in caplog.text
    launches = replace(Launches.on(torch.device("cpu"), PROCESSORS, 90), tilings=made)
    assert launches.tiling(fp8, 1) is None
    gpu.wrong, gpu.broken = set(), set()
    assert table(gpu, folder, fp8) == {fp8: tilings[1]}, "measured again at the next start"


def test_memory_that_runs_out_says_nothing_of_a_product(folder: Path) -> None:
    gpu, fp8 = Gpu(second_is_best), PLAIN._replace(fp8=True)
    gpu.full = True
    assert table(gpu, folder, fp8) == {}


def test_the_measurement_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, seconds = Gpu(second_is_best), count(0, int(linear_table.BUDGET_S))
    kinds = matrices(PLAIN, GATED, ADDED)
    found = linear_table.measure(kinds, PROCESSORS, gpu.multiply, gpu.timer, clock=lambda: next(seconds))
    assert list(found) == [PLAIN]


def test_kinds_of_a_model() -> None:
    config = LanguageModelConfig(100, 64, 96, 2 + 2, 4, 2, 2, 64)
    tensors = {key: torch.zeros(shape) for key, shape in language_model_shapes(config).items()}
    weights = load_weights(config, tensors, torch.device("cpu"), torch.bfloat16)
    found = {product: len(of_kind) for product, of_kind in linear_table.kinds(weights, 70).items()}
    assert found == {
        Product(128, 64): 4,
        Product(64, 64, residual=True): 4,
        Product(192, 64, gate=True): 4,
        Product(64, 96, residual=True): 4,
        Product(64, 128): 2,
        Product(100, 64): 1,
        Product(30, 64): 1,
    }
    eight = weights._replace(mctp_head=quantise(weights.head[30:].float()))
    assert linear_table.kinds(eight, 70).keys() == found.keys() - {Product(30, 64)} | {Product(30, 64, fp8=True)}
