"""The check at the start of an engine: kernels that are wrong, do not compile or stop the GPU, and what serves then."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vita_audio.checkpoint.configs import LanguageModelConfig
from vita_audio.contract.errors import EngineError
from vita_audio.engines.torch_cuda.fp8 import Fp8Matrix, Matrix
from vita_audio.engines.torch_cuda.kernels import compile_cache, self_check
from vita_audio.engines.torch_cuda.kernels.draw import Draws
from vita_audio.engines.torch_cuda.kernels.names import NAMES
from vita_audio.engines.torch_cuda.kernels.operations import REFERENCES, Operations
from vita_audio.engines.torch_cuda.kernels.self_check import Case, disagreement, faulty
from vita_audio.engines.torch_cuda.weights import LayerWeights, ModuleWeights, Weights, holds_fp8

CONFIG = LanguageModelConfig(60, 36, 50, 1 + 2, 6, 2, 2, 64)
CASE = Case(CONFIG, 64, torch.empty(0), 1, 90)
BFLOAT16 = replace(CASE, like=torch.empty(0, dtype=torch.bfloat16))
#: Not checked here: the kernel itself, on a CPU, would need an interpreter.
OFF = frozenset({"attention"})


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv(compile_cache.VARIABLE, str(tmp_path))
    monkeypatch.setattr(self_check, "INSTALLED", True)
    caplog.set_level(logging.WARNING)


def with_kernels(**kernels: Callable[..., Any]) -> Callable[[frozenset[str]], Operations]:
    """How an engine builds its operations, with these functions as kernels."""

    def build(off: frozenset[str]) -> Operations:
        on = {name: kernel for name, kernel in kernels.items() if name not in off}
        return replace(REFERENCES, **on, pdl="pdl" not in off)

    return build


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("case", [CASE, BFLOAT16], ids=["float32", "bfloat16"])
def test_kernels_that_agree_serve(case: Case, caplog: pytest.LogCaptureFixture) -> None:
    def gate(gate_up: Tensor) -> Tensor:
        """Rounds once: in bfloat16 another number than the reference's, for many."""
        one, up = gate_up.float().chunk(2, dim=-1)
        return (one * torch.sigmoid(one) * up).to(gate_up.dtype)

    assert faulty(with_kernels(gate=gate), case, OFF) == OFF
    assert lines(caplog) == []


def wrong_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    made = REFERENCES.norm(x, weight, eps)
    made[-1, -1] *= 1.1
    return made


def wrong_row(qkv: Tensor, bias: Tensor, rotary: Tensor, position: Tensor, cache: Tensor, row: Tensor) -> Tensor:
    return REFERENCES.rotate(qkv, bias, rotary, position, cache, row.flip(0))


def not_a_number(gate_up: Tensor) -> Tensor:
    made = REFERENCES.gate(gate_up)
    made[0, 0] = float("nan")
    return made


def an_id_too_far(logits: Tensor, draws: Draws, number: int, first_id: int, made: Tensor, *rest: Tensor) -> None:
    REFERENCES.draw(logits, draws, number, first_id, made, *rest)
    made[:, number] += 1


def does_not_compile(*args: Any) -> Tensor:
    raise ValueError("at 3:4:\n    x = tl.load(y)\nAssertionError: no such type")


@pytest.mark.parametrize(
    ("name", "kernel", "why"),
    [
        ("norm", wrong_norm, r"1 rows: 1 of 36 numbers of \[1, 36\] float32 differ, by up to \d.*\(allowed 0.0001\)"),
        ("rotate", wrong_row, r"16 rows: \d+ of \d+ numbers of \[24, 2, 2, 6\] float32 differ"),
        ("gate", not_a_number, r"1 rows: 1 of 50 numbers of \[1, 50\] float32 differ, by up to nan"),
        ("gate", lambda x: REFERENCES.gate(x)[:, :-1], r"1 rows: \[1, 49\] float32 instead of \[1, 50\] float32"),
        ("gate", lambda x: REFERENCES.gate(x).half(), r"1 rows: \[1, 50\] float16 instead of \[1, 50\] float32"),
        ("draw", an_id_too_far, r"1 rows: 1 of 2 numbers of \[1, 2\] int64 differ"),
        ("enter", does_not_compile, "1 rows: ValueError: at 3:4: x = tl.load"),
    ],
)
def test_a_kernel_that_is_wrong_is_off_with_one_line(
    name: str, kernel: Callable[..., Tensor], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert faulty(with_kernels(**{name: kernel}), CASE, OFF) == OFF | {name}
    (line,) = lines(caplog)
    assert re.match(f"kernel {name} is off, its reference runs: {why}", line)
    assert "\n" not in line


@pytest.mark.parametrize("wrong_rows", [1, 16, 32, 64, 128])
def test_products_in_fp8_are_checked_at_every_tiling(wrong_rows: int, caplog: pytest.LogCaptureFixture) -> None:
    def linear(x: Tensor, weight: Matrix, *rest: Any, **more: Any) -> Tensor:
        made = REFERENCES.linear(x, weight, *rest, **more)
        if isinstance(weight, Fp8Matrix) and len(x) == wrong_rows:
            made[-1] *= 1.2
        return made

    assert faulty(with_kernels(linear=linear), BFLOAT16, OFF) == OFF, "no weight is FP8"
    case = replace(BFLOAT16, fp8=True)
    assert faulty(with_kernels(), case, OFF) == OFF
    assert lines(caplog) == []
    assert faulty(with_kernels(linear=linear), case, OFF) == OFF | {"linear"}
    (line,) = lines(caplog)
    assert f"of [{wrong_rows}, 512] bfloat16 differ" in line


def test_fp8_is_looked_for_in_every_part() -> None:
    like = torch.empty(0)
    matrix = Fp8Matrix(like, like)
    layer = LayerWeights(*[like] * 7)
    none = Weights(like, (layer,), (ModuleWeights(like, like, like, layer),), like, like, like)
    assert not holds_fp8(none)
    assert holds_fp8(none._replace(mctp_head=matrix))
    assert holds_fp8(none._replace(layers=(layer, layer._replace(qkv=matrix))))
    assert holds_fp8(none._replace(modules=(none.modules[0]._replace(projection=matrix),)))


def test_one_kernel_that_is_wrong_leaves_the_others_on(caplog: pytest.LogCaptureFixture) -> None:
    build = with_kernels(norm=wrong_norm, gate=REFERENCES.gate, enter=does_not_compile)
    assert faulty(build, CASE, OFF) == OFF | {"norm", "enter"}
    assert len(lines(caplog)) == 2


def test_what_is_switched_off_is_not_run(caplog: pytest.LogCaptureFixture) -> None:
    build = with_kernels(norm=does_not_compile)
    assert faulty(build, CASE, OFF | {"norm"}) == OFF | {"norm"}
    assert faulty(build, CASE, frozenset(NAMES)) == frozenset(NAMES)
    assert lines(caplog) == []


def test_what_fails_by_programmatic_dependent_launch_alone_runs_without(caplog: pytest.LogCaptureFixture) -> None:
    def build(off: frozenset[str]) -> Operations:
        return REFERENCES if "pdl" in off else replace(REFERENCES, norm=does_not_compile, gate=does_not_compile)

    assert faulty(build, CASE, OFF) == OFF | {"pdl"}
    assert len(lines(caplog)) == 1
    assert "programmatic dependent launch" in lines(caplog)[0]


def test_random_rows_are_the_same_for_both(caplog: pytest.LogCaptureFixture) -> None:
    before = torch.random.get_rng_state()
    assert faulty(with_kernels(), CASE, OFF) == OFF
    assert torch.equal(before, torch.random.get_rng_state())


def test_without_the_language_everything_is_off(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(self_check, "INSTALLED", False)
    assert faulty(with_kernels(), CASE, frozenset()) == frozenset(NAMES)
    assert lines(caplog) == ["kernels off: the package `triton` is not installed; PyTorch's own operations run, slower"]


@pytest.fixture
def unwritable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A folder that cannot be made, for root too: below a file."""
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv(compile_cache.VARIABLE, str(file / "cache"))
    yield file / "cache"
    while compile_cache._temporary:
        compile_cache._temporary.pop().cleanup()


def test_a_cache_that_cannot_be_written_is_replaced(unwritable: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert faulty(with_kernels(), CASE, OFF) == OFF
    folder = compile_cache.cache_folder()
    assert folder != unwritable
    assert folder.is_dir()
    (line,) = lines(caplog)
    assert line.startswith(f"{unwritable} cannot be used (Not a directory)")


def test_without_any_folder_the_references_serve(
    unwritable: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(**options: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryDirectory", refuse)
    assert faulty(with_kernels(), CASE, OFF) == frozenset(NAMES)
    assert [
        next(part for part in ("cannot be used", "no folder for compiled kernels") if part in line)
        for line in lines(caplog)
    ] == ["cannot be used", "no folder for compiled kernels"]


def test_the_cache_is_where_the_language_looks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    knobs = pytest.importorskip("triton").knobs
    assert Path(knobs.cache.dir) == compile_cache.cache_folder() == tmp_path
    monkeypatch.delenv(compile_cache.VARIABLE)
    for home in (str(tmp_path), None):
        monkeypatch.setenv("TRITON_HOME", home) if home else monkeypatch.delenv("TRITON_HOME", raising=False)
        assert Path(knobs.cache.dir).expanduser() == compile_cache.cache_folder()


def test_a_kernel_that_stops_the_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing runs after it, so nothing can fall back: the start fails with what to do."""

    class OnGpu(Tensor):
        @property
        def is_cuda(self) -> bool:  # type: ignore[override]
            return True

    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: torch.no_grad())
    broken: list[str] = []

    def synchronize(device: object) -> None:
        if broken:
            raise RuntimeError("CUDA error: an illegal memory access\nwas encountered")

    def gate(gate_up: Tensor) -> Tensor:
        broken.append("gate")
        return REFERENCES.gate(gate_up)

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    case = replace(CASE, like=torch.empty(0).as_subclass(OnGpu))
    with pytest.raises(EngineError, match=r"^kernel gate has stopped the GPU: .* access was .* --kernels-off gate$"):
        faulty(with_kernels(gate=gate), case, OFF)


def test_integers_have_to_be_equal() -> None:
    one = torch.arange(5)
    assert disagreement(one, one) == ""
    assert disagreement(one.flip(0), one) == "4 of 5 numbers of [5] int64 differ"
