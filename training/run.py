"""One resumable training loop: rate schedule, seeds, snapshots, logs, progress with ETA, clean stop.

run = Run(folder, settings, state={"model": model, "optimizer": optimizer}, optimizers=[optimizer])
for step in run:                      # from the last snapshot to settings.steps, learning rates already set
    batch = draw(step)                # data is a function of (seed, step): see `step_generator` and `Shuffle`
    loss = ...
    optimizer.zero_grad(); loss.backward(); clip(model, settings); optimizer.step()
    run.log(loss=loss, tokens=batch.tokens)          # averaged into log.csv; `tokens` becomes tokens_per_s
    if run.evaluation_due:
        run.record("held_out", {"loss": ...})        # held_out.csv
"""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from training.errors import Stopped, TrainingError
from training.files import whole_file
from training.logs import Table, duration, write_curve
from training.snapshots import Snapshots, Stateful
from vita_audio.machine import describe_device


@dataclass(frozen=True, slots=True)
class RunSettings:
    """Optimisation of one part. `warmup` and `floor` are shares of `steps` and of `learning_rate`."""

    steps: int
    learning_rate: float
    warmup: float = 0.03
    floor: float = 0.1
    weight_decay: float = 0.0
    clip: float = 1.0
    seed: int = 42
    log_every: int = 20
    save_every: int = 200
    evaluate_every: int = 200

    @property
    def result(self) -> dict[str, object]:
        """All that what is trained depends on: not when something is shown or kept."""
        return {name: value for name, value in asdict(self).items() if not name.endswith("_every")}

    def rate(self, step: int) -> float:
        """Learning rate of step 0, 1, ...: linear warm-up, then a cosine from 1 to `floor` (docs/audio.md 8)."""
        warmup = max(1, round(self.warmup * self.steps))
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        done = (step - warmup) / max(1, self.steps - warmup)
        return self.learning_rate * (self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def set_seeds(seed: int) -> None:
    """Seed PyTorch (all devices) before the weights are made."""
    torch.manual_seed(seed)


def step_generator(seed: int, step: int, rank: int = 0) -> np.random.Generator:
    """Random generator of one step: what it draws does not depend on what ran before, so a resume is exact."""
    return np.random.default_rng((seed, step, rank))


class Shuffle:
    """Endless epochs over `count` items, each in a new order: `shuffle[position]` is the item at a position."""

    def __init__(self, count: int, seed: int) -> None:
        if count < 1:
            raise TrainingError("there is nothing to train on: the data set is empty")
        self.count, self.seed = count, seed
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def __getitem__(self, position: int) -> int:
        epoch, index = divmod(position, self.count)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, np.random.default_rng((self.seed, epoch)).permutation(self.count)
        return int(self._order[index])


def adamw(groups: Iterable[tuple[Iterable[nn.Parameter], float]], settings: RunSettings, **options: Any) -> AdamW:
    """AdamW (0.9, 0.95) over (parameters, learning-rate multiplier) groups; norms and biases do not decay."""
    split = []
    for parameters, multiplier in groups:
        trained = [p for p in parameters if p.requires_grad]
        for decay, members in (
            (settings.weight_decay, [p for p in trained if p.dim() > 1]),
            (0.0, [p for p in trained if p.dim() <= 1]),
        ):
            if members:
                split.append({"params": members, "weight_decay": decay, "multiplier": multiplier})
    return AdamW(split, **{"lr": settings.learning_rate, "betas": (0.9, 0.95), "eps": 1e-8, **options})


def clip(parameters: nn.Module | Iterable[nn.Parameter], settings: RunSettings) -> Tensor:
    """Scale gradients down to norm `settings.clip` and return their norm [] before that."""
    trained = parameters.parameters() if isinstance(parameters, nn.Module) else parameters
    return nn.utils.clip_grad_norm_(trained, settings.clip)


class Run:
    """Iterating over it yields the steps still to do; everything between two snapshots is repeated exactly.

    `folder` gets snapshots/, log.csv, the tables of `record`, loss.svg and, at the end, done.json.

    Args:
        state: what a snapshot holds, by name (modules, optimizers, anything with `state_dict`).
        optimizers: their groups' rates are set before each step: rate(step) x group["multiplier"] (1 when absent).
        identity: numbers and strings that, beside `settings`, must be equal for a resume to make sense (sizes, data
            fingerprint).
        store: where snapshots go; None is `folder/snapshots`.
        main: whether this process writes logs (rank 0).
        agree: makes one decision of all processes out of "I was asked to stop".

    Raises:
        TrainingError: a snapshot of other settings or another shape is in the way.
    """

    def __init__(
        self,
        folder: Path,
        settings: RunSettings,
        state: Mapping[str, Stateful],
        optimizers: Sequence[Optimizer] = (),
        *,
        identity: Mapping[str, object] | None = None,
        store: Snapshots | None = None,
        main: bool = True,
        agree: Callable[[bool], bool] = bool,
        console: Console | None = None,
    ) -> None:
        self.folder, self.settings, self.state, self.optimizers = folder, settings, dict(state), list(optimizers)
        self.main, self.agree, self.console = main, agree, console or Console(soft_wrap=True, highlight=False)
        self.store = store or Snapshots(folder / "snapshots")
        self.identity = json.dumps({**settings.result, **(identity or {})}, sort_keys=True, default=str)
        self.step, self.elapsed_s = 0, 0.0
        self._tables: dict[str, Table] = {}
        self._sums: dict[str, Tensor | float] = {}
        self._counts: dict[str, int] = {}
        self._stop = False
        self._resume()
        self._resumed_at, self._window_s = self.step, time.perf_counter()

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.step >= self.settings.steps

    @property
    def evaluation_due(self) -> bool:
        """True within steps that are followed by an evaluation: every `evaluate_every`, and the last."""
        done = self.step + 1
        return done % self.settings.evaluate_every == 0 or done == self.settings.steps

    def __iter__(self) -> Iterator[int]:
        started_s = self._window_s = time.perf_counter()
        before_s = self.elapsed_s
        with self._signals(), self._bar() as bar:
            shown = bar.add_task(self.folder.name, total=self.settings.steps, completed=self.step)
            while not self.finished:
                for optimizer in self.optimizers:
                    for group in optimizer.param_groups:
                        group["lr"] = self.settings.rate(self.step) * group.get("multiplier", 1.0)
                yield self.step
                self.step += 1
                bar.update(shown, completed=self.step)
                self.elapsed_s = before_s + time.perf_counter() - started_s
                if self.step % self.settings.log_every == 0 or self.finished:
                    self._write_log(time.perf_counter() - started_s)
                stop = self.agree(self._stop)
                if self.step % self.settings.save_every == 0 or self.finished or stop:
                    self.save()
                    self._draw()
                if stop and not self.finished:
                    raise Stopped(f"stopped at step {self.step} of {self.settings.steps}; run it again to go on")
        self._write_done()

    def log(self, **values: Tensor | float) -> None:
        """Add to the averages of the next log row. `tokens` is summed and becomes tokens_per_s."""
        for name, value in values.items():
            number = value.detach().float() if isinstance(value, Tensor) else float(value)
            self._sums[name] = self._sums.get(name, 0.0) + number  # tensors stay on their device until the row
            self._counts[name] = self._counts.get(name, 0) + 1

    def record(self, table: str, values: Mapping[str, float]) -> None:
        """Write one row, with the number of steps done, to `table`.csv."""
        if self.main:
            done = min(self.step + 1, self.settings.steps)
            self._table(table).append(done, values)
            self._say(f"{self._place(done)} {table}: " + _shown(values))

    def save(self) -> None:
        """Take a snapshot now. Raises TrainingError when it cannot be written, or would hold what is no number."""
        self._check_numbers()
        header: dict[str, Any] = {"step": self.step, "elapsed_s": self.elapsed_s, "identity": self.identity}
        header["random"] = torch.get_rng_state()
        if torch.cuda.is_available():
            header["random_cuda"] = torch.cuda.get_rng_state()
        self.store.save(self.step, header, self.state)

    def _check_numbers(self) -> None:
        """No good snapshot may be followed by a bad one: a loss is of the weights before its step."""
        for name, total in self._sums.items():
            self._check(name, float(total))
        for name, part in self.state.items():
            if isinstance(part, nn.Module) and not all(bool(each.isfinite().all()) for each in part.parameters()):
                self._check(f"a weight of {name}", math.nan)

    def _check(self, name: str, value: float) -> None:
        if not math.isfinite(value):
            raise TrainingError(
                f"{self.folder}: {name} is {value} before step {self.step}; the last good snapshot is kept: lower "
                "the learning rate, or look at the samples of this step"
            )

    def _resume(self) -> None:
        latest = self.store.latest()
        if latest is None:
            return
        header = self.store.load(latest, self.state)
        if header["identity"] != self.identity:
            raise TrainingError(
                f"{self.folder}: holds a training of other settings; delete it or choose another folder.\n  "
                + "\n  ".join(differences(json.loads(header["identity"]), json.loads(self.identity)))
            )
        self.step, self.elapsed_s = int(header["step"]), float(header["elapsed_s"])
        torch.set_rng_state(header["random"])
        if "random_cuda" in header and torch.cuda.is_available():
            torch.cuda.set_rng_state(header["random_cuda"])
        if self.main:
            for path in self.folder.glob("*.csv"):
                self._table(path.stem).truncate(self.step)
            self._say(f"{self._place(self.step)} resumed after {duration(self.elapsed_s)} of training")

    def _write_log(self, since_start_s: float) -> None:
        values = {name: float(total) / self._counts[name] for name, total in self._sums.items()}
        window_s = time.perf_counter() - self._window_s
        if "tokens" in values:
            values["tokens_per_s"] = values.pop("tokens") * self._counts["tokens"] / window_s
        self._sums, self._counts, self._window_s = {}, {}, time.perf_counter()
        for name, value in values.items():
            self._check(name, value)
        if not self.main:
            return
        values["lr"] = self.settings.rate(self.step - 1)
        self._table("log").append(self.step, values)
        left_s = since_start_s / (self.step - self._resumed_at) * (self.settings.steps - self.step)
        self._say(f"{self._place(self.step)} {_shown(values)}, {duration(left_s)} left")

    def _write_done(self) -> None:
        """Last rows of every table and the time it took: what a model card is written from."""
        if not self.main:
            return
        tables = {name: self._table(name).rows[-1] for name in self._tables if self._table(name).rows}
        record = {
            "steps": self.step,
            "elapsed_s": round(self.elapsed_s, 1),
            "machine": describe_device(),
            "last": tables,
        }
        with whole_file(self.folder / "done.json") as path:
            path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

    def _draw(self) -> None:
        curves = {
            f"{name} {column}" if name != "log" else column: table.column(column)
            for name, table in self._tables.items()
            for column in table.columns
            if column.startswith("loss")
        }
        if self.main:
            write_curve(self.folder / "loss.svg", curves, self.folder.name)

    def _bar(self) -> Progress:
        """A bar on a terminal; elsewhere the printed log rows are the progress."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
        return Progress(*columns, *times, console=self.console, disable=not (self.main and self.console.is_terminal))

    def _table(self, name: str) -> Table:
        if name not in self._tables:
            self._tables[name] = Table(self.folder / f"{name}.csv")
        return self._tables[name]

    def _place(self, step: int) -> str:
        return f"{self.folder.name} {step}/{self.settings.steps}"

    def _say(self, line: str) -> None:
        self.console.print(line, markup=False)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM and Ctrl-C end the loop after the running step; a second Ctrl-C ends it at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(number: int, frame: FrameType | None) -> None:
            self._stop = True
            signal.signal(number, previous[signal.Signals(number)])

        previous: dict[signal.Signals, Any] = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
        for number in previous:
            signal.signal(number, ask)
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def differences(there: Mapping[str, object], asked: Mapping[str, object]) -> list[str]:
    """A line for each key whose value is another one."""
    keys = sorted(key for key in {**there, **asked} if there.get(key) != asked.get(key))
    return [f"{key}: {there.get(key)} there, {asked.get(key)} asked" for key in keys]


def _shown(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())
