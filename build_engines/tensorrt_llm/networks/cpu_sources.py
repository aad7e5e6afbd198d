"""Runs the Python sources of TensorRT-LLM on a machine without GPU, driver or wheel, to define networks.

`TRTLLM_SRC` names a folder that holds a `tensorrt_llm/` source tree (1.2 or 1.3.0rc3). TensorRT itself is real: its
CPU-installable sibling `tensorrt-rtx-cu13` checks types, shapes and profiles as it adds layers. What is compiled C++ in
the wheel (bindings, MPI, device queries) is stood in for by objects that only have to exist; no kernel ever runs.
"""

from __future__ import annotations

import enum
import importlib
import importlib.machinery
import os
import sys
import types
from pathlib import Path
from typing import Any
from unittest import mock

from vita_audio.contract.errors import EngineError

SOURCE_VARIABLE = "TRTLLM_SRC"
#: The GPU the networks are defined for: an H100.
COMPUTE_CAPABILITY = (9, 0)


def source_folder() -> Path:
    """The folder that `TRTLLM_SRC` names. Raises EngineError when it is not set or holds no source tree."""
    named = os.environ.get(SOURCE_VARIABLE, "")
    if not named:
        raise EngineError(f"{SOURCE_VARIABLE} is not set: name a folder that holds a tensorrt_llm/ source tree")
    if not (Path(named) / "tensorrt_llm" / "builder.py").is_file():
        raise EngineError(f"{SOURCE_VARIABLE}: {named} has no tensorrt_llm/builder.py; name the folder above it")
    return Path(named)


def install() -> None:
    """Make `import tensorrt_llm` find the sources. Once in a process, before the first such import.

    Raises:
        EngineError: no source tree is named, or a package the sources need is missing.
    """
    root = source_folder() / "tensorrt_llm"
    try:
        import tensorrt_rtx
        import torch
        import transformers.modeling_utils
        import transformers.pytorch_utils  # noqa: F401  these look for packages that are stood in for below
    except ImportError as error:
        raise EngineError(f"a dry run needs {error.name}: see docs/tensorrt_llm.md 8") from error
    sys.modules["tensorrt"] = tensorrt_rtx
    _stand_in("mpi4py", MPI=mock.MagicMock(COMM_WORLD=_one_process()))
    _stand_in("mpi4py.MPI", COMM_WORLD=_one_process())
    _stand_in("mpi4py.util")
    _stand_in("mpi4py.util.pkl5", Intracomm=lambda comm: comm)
    _stand_in("datasets", load_dataset=None)
    for name in ("", "llmapi", "_torch", "runtime"):  # their __init__ would import the compiled half
        _folder("tensorrt_llm" + (f".{name}" if name else ""), root / name)
    _stand_in("tensorrt_llm.quantization.quantize_by_modelopt")
    _stand_in("tensorrt_llm.quantization.utils.fp8_utils")
    _bindings()
    properties: Any = types.SimpleNamespace(
        major=COMPUTE_CAPABILITY[0],
        minor=COMPUTE_CAPABILITY[1],
        multi_processor_count=132,
        total_memory=80 << 30,
        name="defined for, not present",
    )
    torch.cuda.get_device_properties = lambda *_: properties
    torch.cuda.get_device_capability = lambda *_: COMPUTE_CAPABILITY
    importlib.import_module("tensorrt_llm.models")
    importlib.import_module("build_engines.tensorrt_llm.networks.cpu_plugins").install()


def _one_process() -> mock.MagicMock:
    comm = mock.MagicMock()
    comm.Get_rank.return_value, comm.Get_size.return_value = 0, 1
    return comm


def _bindings() -> None:
    bindings = _stand_in(
        "tensorrt_llm.bindings",
        DataType=enum.Enum("DataType", "FLOAT HALF INT8 INT32 BOOL UINT8 FP8 BF16 INT64 NVFP4 INT4"),
        LayerType=enum.Enum("LayerType", "ATTENTION RECURRENT"),
        KVCacheType=enum.Enum("KVCacheType", "CONTINUOUS PAGED DISABLED"),
    )
    _stand_in("tensorrt_llm.bindings.BuildInfo", ENABLE_MULTI_DEVICE=False)
    for name in ("executor", "internal", "internal.runtime", "internal.batch_manager"):
        _stand_in(f"{bindings.__name__}.{name}")


class _StandIn(types.ModuleType):
    """A module that has every name: classes keep their keyword arguments, functions answer with mocks."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        full = f"{self.__name__}.{name}"
        if full in sys.modules:
            return sys.modules[full]
        made: Any = mock.MagicMock(name=full)
        if name[0].isupper():
            made = type(name, (), {"__module__": self.__name__, "__init__": _keep_fields})
        setattr(self, name, made)
        return made


def _keep_fields(self: Any, *_: Any, **fields: Any) -> None:
    self.__dict__.update(fields)


def _stand_in(name: str, **attributes: Any) -> types.ModuleType:
    module = _StandIn(name)
    module.__path__ = []  # a package: it may have submodules
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    module.__dict__.update(attributes)
    return _register(module)


def _folder(name: str, path: Path) -> types.ModuleType:
    """A package that finds its submodules but does not run its own `__init__`."""
    module = types.ModuleType(name)
    module.__path__, module.__package__ = [str(path)], name
    return _register(module)


def _register(module: types.ModuleType) -> types.ModuleType:
    sys.modules[module.__name__] = module
    parent, _, leaf = module.__name__.rpartition(".")
    if parent in sys.modules:
        setattr(sys.modules[parent], leaf, module)
    return module
