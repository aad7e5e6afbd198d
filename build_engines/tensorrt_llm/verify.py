"""Is a conversion the same model?

    python -m build_engines.tensorrt_llm.verify --checkpoint DIR --converted DIR

Every rank's tensors are joined back into released ones and compared: bit for bit where nothing was quantised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from safetensors import safe_open
from torch import Tensor

from build_engines.command import errors_reported
from build_engines.tensorrt_llm.config_file import check_part, rank_file
from build_engines.tensorrt_llm.layout import Part, Split
from vita_audio.checkpoint.language_model import ReleasedCheckpoint, open_language_model
from vita_audio.contract.errors import EngineError

#: Largest relative error (root mean square) of a quantised weight; 4 bits are at about 0.11, a wrong layout above 1.
ERROR_LIMIT = 0.5


@dataclass(frozen=True, slots=True)
class Restored:
    """A released tensor made from the ranks' files again, or its rows from `first_row` on.

    `exact`: it was not quantised.
    """

    key: str
    tensor: Tensor
    exact: bool
    first_row: int


def restore(folder: Path) -> Iterator[Restored]:
    """The released tensors of a converted part, one after the other.

    Raises:
        CheckpointError, EngineError: the part is not complete, or ranks contradict each other.
    """
    plan = check_part(folder)
    for module in plan.modules:
        with ExitStack() as stack:  # opened for each module, so that what was read leaves the memory
            files = [
                stack.enter_context(safe_open(folder / rank_file(rank), framework="pt")) for rank in range(plan.tp)
            ]
            names = [name for name in plan.outline[0] if name.startswith(f"{module.name}.")]
            ranks = [{name: file.get_tensor(name) for name in names} for file in files]
        first_row = plan.head_first_id if module.split is Split.VOCABULARY else 0
        for key, tensor in plan.decode(module, ranks):
            yield Restored(key, tensor, not (plan.is_quantised(module) and key.endswith("weight")), first_row)


def verify_part(source: ReleasedCheckpoint, folder: Path, on_tensor: Callable[[], None] = lambda: None) -> float:
    """Compare a converted part with the checkpoint it was made from.

    Returns:
        The largest relative error of a quantised weight; 0.0 when nothing was quantised.

    Raises:
        EngineError: a tensor is another one; names it.
    """
    largest = 0.0
    for restored in restore(folder):
        released = source.read(restored.key)[restored.first_row :]
        if restored.exact:
            if not bool((released.to(restored.tensor.dtype) == restored.tensor).all()):
                raise EngineError(f"{folder}: {restored.key} is not that of {source.folder}; convert again")
        else:
            wanted = released.float()
            error = float((restored.tensor - wanted).norm() / wanted.norm().clamp(min=1e-12))
            if not error <= ERROR_LIMIT:
                raise EngineError(
                    f"{folder}: {restored.key} differs by {error:.2f} from {source.folder}, the limit is "
                    f"{ERROR_LIMIT}; calibrate and convert again"
                )
            largest = max(largest, error)
        on_tensor()
    return largest


def main(
    checkpoint: Annotated[Path, typer.Option(help="Released language model: config.json and safetensors.")],
    converted: Annotated[Path, typer.Option(help="Folder with backbone/ and mctp/.")],
) -> None:
    """Compare converted parts with the released checkpoint, tensor by tensor."""
    console = Console(highlight=False, soft_wrap=True)
    with errors_reported():
        source = open_language_model(checkpoint)
        folders = [converted / part.value for part in Part if (converted / part.value).is_dir()]
        if not folders:
            raise EngineError(f"--converted: neither backbone/ nor mctp/ is in {converted}; convert first")
        for folder in folders:
            error = verify_part(source, folder)
            words = f"largest relative error of a quantised weight {error:.4f}" if error else "equal, bit for bit"
            console.print(f"{folder}: {words}", markup=False)


if __name__ == "__main__":
    typer.run(main)
