"""The scales file of a quantised conversion, made by `calibrate` or by another tool.

Safetensors, or JSON (an object: name -> number or nested lists). Names are those of the released linear layers:

    <layer>.activation_scaling_factor     FP8   largest |input| / 448, one number
    <layer>.weights_scaling_factor        FP8   largest |weight| / 448, one number
                                          AWQ   [out, in / 128]: largest |weight / prequant| of a group / 7
    <layer>.prequant_scaling_factor       AWQ   [in]: factor of each input; equal for q, k, v, and for gate and up
    model.layers.<N>.self_attn.kv_cache_scaling_factor   FP8 KV cache: largest |k or v| in the cache / 448

<layer> is model.layers.<N>.self_attn.{q,k,v,o}_proj, model.layers.<N>.mlp.{gate,up,down}_proj or mtp_projs.<k>; <N>
counts backbone layers first, then MCTP modules. Names that a conversion does not need are skipped.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from build_engines.tensorrt_llm.formats import PREQUANT
from build_engines.tensorrt_llm.plan import DTYPES, Plan
from vita_audio.checkpoint.weight_files import LISTED
from vita_audio.contract.errors import EngineError


def load_scales(path: Path | None, plans: Iterable[Plan]) -> dict[str, Tensor]:
    """The scales that plans need, float32.

    Raises:
        EngineError: no file is named though scales are needed, it cannot be read, or scales are missing, have another
            shape, are not positive and finite, or differ where they must be equal; names them.
    """
    plans = list(plans)
    shapes = {name: shape for plan in plans for name, shape in plan.scale_shapes.items()}
    if not shapes:
        return {}
    if path is None:
        raise EngineError(
            f"--scales: {len(shapes)} scales are needed ({next(iter(shapes))}, ...) and no file is named; "
            "make one with python -m build_engines.tensorrt_llm.calibrate"
        )
    found = _read(path)
    if missing := [name for name in shapes if name not in found]:
        more = ", ..." if len(missing) > LISTED else ""
        raise EngineError(
            f"{path}: {len(missing)} of {len(shapes)} scales are missing: {', '.join(missing[:LISTED])}{more}; "
            "calibrate again for this quantisation"
        )
    scales = {}
    for name, shape in shapes.items():
        scale = found[name].float()
        if shape == () and scale.numel() == 1:
            scale = scale.reshape(())
        if tuple(scale.shape) != shape:
            raise EngineError(
                f"{path}: {name} is {list(scale.shape)}, must be {list(shape)}; calibrate this checkpoint"
            )
        scales[name] = scale
    for plan in plans:
        for name in plan.scale_shapes:
            stored = scales[name] if scales[name].dim() == 0 else scales[name].to(DTYPES[plan.dtype])
            if not bool((stored.isfinite() & (stored > 0)).all()):
                raise EngineError(f"{path}: {name} must be positive and finite in {plan.dtype}; calibrate again")
        _check_shared(path, plan, scales)
    return scales


def save_scales(path: Path, scales: Mapping[str, Tensor]) -> None:
    """Write a scales file, JSON or safetensors by the end of its name.

    Raises:
        EngineError: it has another end, or cannot be written.
    """
    check_scales_file(path)
    try:
        if path.suffix == ".json":
            path.write_text(json.dumps({name: value.tolist() for name, value in scales.items()}, indent=1) + "\n")
        else:
            save_file({name: value.clone() for name, value in scales.items()}, path)  # shared ones are refused
    except (OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise EngineError(f"{path}: cannot be written ({reason}); free space, or name another file") from error


def check_scales_file(path: Path) -> None:
    """Raises EngineError where no scales file can be written: another end of the name, or no folder to hold it."""
    if path.suffix not in (".json", ".safetensors"):
        raise EngineError(f"{path}: a scales file ends with .safetensors or .json")
    if path.is_dir():
        raise EngineError(f"{path}: is a folder; name a file")
    if not path.parent.is_dir():
        raise EngineError(f"{path}: there is no folder {path.parent}; make it, or name another file")


def _check_shared(path: Path, plan: Plan, scales: Mapping[str, Tensor]) -> None:
    """Layers that read one input get it scaled once."""
    for module in plan.modules:
        names = [f"{source}.{PREQUANT}" for source in module.shares]
        present = [name for name in names if name in plan.scale_shapes]
        for name in present[1:]:
            if not torch.equal(scales[present[0]], scales[name]):
                raise EngineError(f"{path}: {name} must equal {present[0]}: both layers read the same input")


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".json":
            values = json.loads(path.read_text(encoding="utf-8"))
            return {str(name): torch.tensor(value, dtype=torch.float32) for name, value in values.items()}
        return load_file(path)
    except (OSError, SafetensorError, ValueError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise EngineError(f"{path}: not a readable scales file ({reason}); give JSON or safetensors") from error
