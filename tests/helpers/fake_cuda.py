"""A CUDA device that is not there: tensors without memory, and a watch on what is dispatched to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

#: PyTorch without CUDA can neither index fake CUDA tensors nor ask for their device; "meta" stands for it there.
DEVICE = torch.device("cuda", 0) if torch.backends.cuda.is_built() else torch.device("meta")
#: What makes the host read the device: a value, or a size that depends on values.
_READ_BY_HOST = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class HostSynchronisation(AssertionError):
    """The host would wait for the device, or a captured graph would keep an address of host memory."""


@contextmanager
def fake_cuda() -> Iterator[torch.device]:
    """Within it a tensor has a shape, a type and a device but no memory: a 7B takes a moment."""
    # Inference mode dispatches composite operations whole: what they are made of would not be seen.
    as_no_grad = mock.patch.multiple(torch.inference_mode, __enter__=lambda self: None, __exit__=lambda *args: None)
    with FakeTensorMode(allow_non_fake_inputs=True), _AsCuda(), as_no_grad, torch.no_grad():
        yield DEVICE


class _AsCuda(TorchFunctionMode):
    """What only a present CUDA device does: numbers are copied there; RMSNorm and attention are one kernel each."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function is torch.tensor or function is Tensor.new_tensor:
            device = kwargs.pop("device", args[0].device if function is Tensor.new_tensor else None)
            return function(*args, **kwargs, device="cpu").to(device or "cpu")
        if function is F.rms_norm and DEVICE.type == "meta":
            return F.layer_norm(*args, weight=kwargs["weight"], eps=kwargs["eps"])
        if function is F.scaled_dot_product_attention:
            return torch.ops.aten._scaled_dot_product_efficient_attention(*args, kwargs.get("attn_mask"), False)[0]
        return function(*args, **kwargs)


class Dispatched(TorchDispatchMode):
    """Operations in order. Raises HostSynchronisation at the first that a captured graph cannot hold.

    Attributes:
        kernels: names of operations that launch something: neither views nor allocations.
        copies: "to device" or "to host" and the shape, of each copy between the two.

    Args:
        border: allow copies between host and device, and work on the host: what an engine does around its graphs.
    """

    def __init__(self, border: bool = False) -> None:
        super().__init__()
        self._border = border
        self.kernels: list[str] = []
        self.copies: list[tuple[str, tuple[int, ...]]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function.namespace == "prim":  # a question to a fake tensor: its device, its layout
            return function(*args, **kwargs)
        given = _tensors((args, kwargs))
        name = function._schema.name.removeprefix("aten::")
        if any(_on_device(one) for one in given) and _reads_values(function, name, args):
            raise HostSynchronisation(f"{function}: the host waits for the device")
        made = function(*args, **kwargs)
        tensors = given + _tensors(made)
        hosts = [one for one in tensors if not _on_device(one)]
        if not hosts:
            if not _is_view(function) and "empty" not in name:
                self.kernels.append(name)
        elif not self._border:
            raise HostSynchronisation(f"{function}: a tensor of the host")
        elif len(hosts) < len(tensors):
            if name not in ("_to_copy", "copy_"):
                raise HostSynchronisation(f"{function}: tensors of both host and device")
            target = args[0] if name == "copy_" else made
            self.copies.append(("to device" if _on_device(target) else "to host", tuple(target.shape)))
        return made

    def launched(self, kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        """In place of `JITFunction.run`: notes a kernel of the GPU language instead of launching it."""
        if any(not _on_device(one) for one in _tensors(args)):
            raise HostSynchronisation(f"{kernel.__name__}: a tensor of the host")
        self.kernels.append(kernel.__name__)


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _on_device(tensor: Tensor) -> bool:
    return tensor.device.type == DEVICE.type


def _reads_values(function: Any, name: str, args: Any) -> bool:
    if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
        return any(one.dtype in (torch.bool, torch.uint8) for one in _tensors(args[1]))  # a mask: its ones are counted
    return not _READ_BY_HOST.isdisjoint(function.tags)


def _is_view(function: Any) -> bool:
    returned = [one.alias_info for one in function._schema.returns]
    return function is torch.ops.aten._unsafe_view.default or any(one and not one.is_write for one in returned)
