"""Several processes on one model: torchrun starts them, FSDP2 shards, torch.distributed.checkpoint keeps snapshots."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.optim import Optimizer

from training.device import pick_device
from training.errors import TrainingError
from training.language_model.forward import TrainedLanguageModel
from training.language_model.loop import Place
from training.snapshots import Snapshots, Stateful

#: Tokenising a large data set may keep processes waiting for the slowest one.
_TIMEOUT = timedelta(hours=24)


@contextmanager
def processes(device: str = "auto") -> Iterator[Place]:
    """The place of this process: one of several under torchrun, else alone on `device`.

    Raises:
        TrainingError: the device is not there.
    """
    if "WORLD_SIZE" not in os.environ:
        yield Place(pick_device(device))
        return
    rank, world, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    on_gpu = device != "cpu" and torch.cuda.is_available()
    here = torch.device("cuda", local) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(here)
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=_TIMEOUT)

    def total(value: Tensor) -> Tensor:
        summed = value.clone()
        dist.all_reduce(summed)
        return summed

    def agree(here_too: bool) -> bool:
        flag = torch.tensor([int(here_too)])
        dist.all_reduce(flag)
        return bool(flag.item())

    yield Place(here, rank, world, total=total, agree=agree)
    dist.destroy_process_group()  # not after an error: the others may wait within a collective


def wait(place: Place) -> None:
    """Until all processes are here."""
    if place.world > 1:
        place.agree(False)


def place_model(model: TrainedLanguageModel, tensors: Mapping[str, Tensor], place: Place) -> None:
    """Give a model that was made on the meta device its memory and its weights, sharded when there are several places.

    Args:
        tensors: all weights; used in process 0 only.

    Raises:
        TrainingError: tied embeddings with several processes.
    """
    if place.world == 1:
        model.to_empty(device=place.device)
        model.load_state_dict(dict(tensors))
        return
    if model.config.tie_word_embeddings:
        raise TrainingError("tie_word_embeddings: a tied head cannot be sharded; use one process")
    mesh = init_device_mesh(place.device.type, (place.world,))
    # Weights and gradients of 32 bits; on a GPU they travel and multiply as bfloat16.
    wire = torch.bfloat16 if place.device.type == "cuda" else None
    policy = MixedPrecisionPolicy(param_dtype=wire, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    model.to_empty(device=place.device)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, dict(tensors) if place.rank == 0 else {}, options=options)


def gathered_weights(model: TrainedLanguageModel) -> dict[str, Tensor]:
    """All weights on the CPU, in process 0; empty in the others."""
    gathered = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return {key: value for key, value in gathered.items() if isinstance(value, Tensor)}


class ShardedSnapshots(Snapshots):
    """`folder/step_00001000/`, written by all processes, readable by any number of them; never half-written.

    Its state is {"model", "optimizer", others}; the others are small and equal in all processes.
    """

    def __init__(self, folder: Path, place: Place, keep: int = 2) -> None:
        super().__init__(folder, keep)
        self.place = place

    def save(self, step: int, header: dict[str, Any], state: Mapping[str, Stateful]) -> None:
        """Raises TrainingError when it could not be written; earlier snapshots are untouched."""
        folder, temporary = self._path(step), self.folder / f".step_{step:08d}.tmp"
        model, optimizer, others = _split(state)
        try:
            if self.place.rank == 0:
                shutil.rmtree(temporary, ignore_errors=True)
                others_state = {name: value.state_dict() for name, value in others.items()}
                temporary.mkdir(parents=True)
                torch.save({"header": header, "state": others_state}, temporary / "others.pt")
            wait(self.place)
            with _quietly_alone():
                dcp.save(_sharded_state(model, optimizer), checkpoint_id=temporary, no_dist=self.place.world == 1)
            if self.place.rank == 0:
                shutil.rmtree(folder, ignore_errors=True)
                temporary.replace(folder)
                for old in self.steps()[: -self.keep]:
                    shutil.rmtree(self._path(old), ignore_errors=True)
            wait(self.place)
        except (OSError, RuntimeError, CheckpointException) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            reason = str(error).strip().splitlines()[-1]
            raise TrainingError(f"{folder}: cannot be written ({reason}); free some space and run it again") from error

    def identity(self) -> dict[str, Any]:
        """Of the training that the latest snapshot is of; empty without one. Raises TrainingError: not readable."""
        latest = self.latest()
        return {} if latest is None else json.loads(self._others(latest)["header"]["identity"])

    def load(self, step: int, state: Mapping[str, Stateful]) -> dict[str, Any]:
        """Restore in place and return the header. Raises TrainingError when the snapshot is of another shape."""
        folder = self._path(step)
        model, optimizer, others = _split(state)
        stored = self._others(step)
        try:
            wanted = _sharded_state(model, optimizer)
            with _quietly_alone():
                dcp.load(wanted, checkpoint_id=folder, no_dist=self.place.world == 1)
            set_model_state_dict(model, wanted["model"])
            set_optimizer_state_dict(model, optimizer, wanted["optimizer"])
            for name, target in others.items():
                target.load_state_dict(stored["state"][name])
        except (OSError, RuntimeError, KeyError, ValueError, CheckpointException) as error:
            raise _cannot_go_on(folder, error) from error
        return stored["header"]

    def _others(self, step: int) -> dict[str, Any]:
        """All but the weights and the optimizer."""
        folder = self._path(step)
        try:
            stored: dict[str, Any] = torch.load(folder / "others.pt", map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, ValueError) as error:
            raise _cannot_go_on(folder, error) from error
        return stored

    def _path(self, step: int) -> Path:
        return self.folder / f"step_{step:08d}"


def _cannot_go_on(folder: Path, error: BaseException) -> TrainingError:
    return TrainingError(
        f"{folder}: cannot go on from this snapshot ({str(error).strip().splitlines()[-1]}); delete it to go on from "
        "the one before, or its folder to start again"
    )


@contextmanager
def _quietly_alone() -> Iterator[None]:
    """One process on purpose is nothing to warn of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        yield


def _split(state: Mapping[str, Stateful]) -> tuple[TrainedLanguageModel, Optimizer, dict[str, Stateful]]:
    model, optimizer = state["model"], state["optimizer"]
    assert isinstance(model, TrainedLanguageModel)
    assert isinstance(optimizer, Optimizer)
    return model, optimizer, {name: value for name, value in state.items() if name not in ("model", "optimizer")}


def _sharded_state(model: TrainedLanguageModel, optimizer: Optimizer) -> dict[str, Any]:
    return {"model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer)}
