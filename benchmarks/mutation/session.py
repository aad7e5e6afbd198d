"""A sample of mutants and what became of each, kept in a folder: a copy of the tree, and cosmic-ray's database."""

from __future__ import annotations

import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from cosmic_ray.mutating import mutate_and_test
from cosmic_ray.testing import run_tests
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import TestOutcome, WorkItem, WorkResult

from benchmarks.mutation.mutants import all_mutants, sample
from benchmarks.mutation.rooms import ROOMS, Room, room_of

#: What a mutant may take, in times of its room's tests without one; and what a busy machine adds.
TIMES_AS_LONG, SECONDS_MORE = 3.0, 20.0
#: A loop that never ends may gather memory until its time is up.
MEMORY_BYTES = 6 << 30
#: How long a room's tests may take without a mutant.
LONGEST_BASELINE_S = 900.0
#: How long processes that were killed may take to be gone.
_END_S = 10.0


class CannotRun(RuntimeError):
    """The mutants cannot be run; the message says why and what to do, in one line."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """One of the sample. `outcome` is pending, killed, timed out, survived, or broken (it could not be put in)."""

    file: str
    line: int
    operator: str
    room: str
    outcome: str
    diff: str


class Session:
    """Begins a sample, or goes on with the one that `folder` has.

    Args:
        root: the repository; read, never written.
        folder: made if it is not there.
        rooms: whose code is mutated.
    """

    def __init__(self, root: Path, folder: Path, rooms: Sequence[Room] = ROOMS) -> None:
        self.tree, self._root, self._rooms = folder / "tree", root, rooms
        self._originals = folder / "originals"
        self._database = folder / "session.sqlite"

    @property
    def begun(self) -> bool:
        return self._database.exists()

    def begin(self, count: int, seed: int) -> None:
        """Copy the tree and draw `count` mutants of all rooms; what the folder had is gone."""
        for folder in (self.tree, self._originals):
            shutil.rmtree(folder, ignore_errors=True)
        self._database.unlink(missing_ok=True)
        self._database.parent.mkdir(parents=True, exist_ok=True)
        self._copy(".")
        files = [file for room in self._rooms for code in room.code for file in _python_files(self.tree / code)]
        for file in files:
            _copy_file(file, self._originals / file.relative_to(self.tree))
        with use_db(str(self._database)) as database:
            database.add_work_items(sample(all_mutants(files), count, seed))

    def retry(self) -> int:
        """Take the tests of the repository as they are now; survivors are pending again. How many there are."""
        shutil.rmtree(self.tree / "tests")
        self._copy("tests")
        with self._open() as database:
            done = {item.job_id: (item, result) for item, result in database.completed_work_items}
            survived = [job for job, (_, result) in done.items() if result.test_outcome == TestOutcome.SURVIVED]
            items = sorted(database.work_items, key=lambda item: item.job_id)
            database.clear()
            database.add_work_items(items)
            for job, (_, result) in done.items():
                if job not in survived:
                    database.set_result(job, result)
        return len(survived)

    def run(self, rooms: Collection[str], minutes: float, tell: Callable[[str], None]) -> None:
        """Run what is pending in these rooms; no mutant is begun after `minutes`.

        A mutant that a run left behind when it was killed is taken out first. Where this one is cut short, the tests
        that run are ended.

        Raises:
            CannotRun: the tests of a room fail without a mutant.
        """
        end = time.monotonic() + 60 * minutes
        limits: dict[str, float] = {}
        for file in _python_files(self._originals):
            _copy_file(file, self.tree / file.relative_to(self._originals))
        with self._open() as database, _surroundings(self.tree), _tests_ended():
            pending = [item for item in database.pending_work_items if self._room(item).name in rooms]
            pending.sort(key=lambda item: item.job_id)
            for number, item in enumerate(pending, 1):
                if time.monotonic() > end:
                    tell(f"{minutes:g} minutes have passed: {len(pending) - number + 1} mutants are left")
                    return
                room = self._room(item)
                if room.name not in limits:
                    limits[room.name] = self._limit(room, tell)
                result = mutate_and_test(item.mutations, _command(room), limits[room.name])
                database.set_result(item.job_id, result)
                mutant = self._mutant(item, result)
                tell(f"{number}/{len(pending)} {mutant.outcome}: {mutant.file}:{mutant.line} {mutant.operator}")

    def mutants(self) -> list[Mutant]:
        with self._open() as database:
            results = {item.job_id: result for item, result in database.completed_work_items}
            items = sorted(database.work_items, key=lambda item: item.job_id)
            return [self._mutant(item, results.get(item.job_id)) for item in items]

    @contextmanager
    def _open(self) -> Iterator[WorkDB]:
        with use_db(str(self._database), WorkDB.Mode.open) as database:
            yield database

    def _copy(self, part: str) -> None:
        """The files below `part` that git does not ignore, as they are in the checkout now."""
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", part],
            cwd=self._root, capture_output=True, check=True,
        )  # fmt: skip
        for name in filter(None, listed.stdout.decode().split("\0")):
            source, target = self._root / name, self.tree / name
            if source.is_file() or source.is_symlink():
                _copy_file(source, target)

    def _limit(self, room: Room, tell: Callable[[str], None]) -> float:
        """Seconds a mutant of the room may take."""
        start = time.monotonic()
        outcome, output = run_tests(_command(room), LONGEST_BASELINE_S)
        took = time.monotonic() - start
        if outcome != TestOutcome.SURVIVED:
            last = output.strip().splitlines()[-1] if output.strip() else "no output"
            raise CannotRun(f"room {room.name}: its tests fail without a mutant ({last}): mend them, then begin again")
        tell(f"room {room.name}: {took:.0f} s without a mutant")
        return TIMES_AS_LONG * took + SECONDS_MORE

    def _room(self, item: WorkItem) -> Room:
        return room_of(item.mutations[0].module_path.relative_to(self.tree).as_posix(), self._rooms)

    def _mutant(self, item: WorkItem, result: WorkResult | None) -> Mutant:
        (spec,) = item.mutations
        file = spec.module_path.relative_to(self.tree).as_posix()
        operator = spec.operator_name.partition("/")[2]
        diff = (result.diff or "") if result else ""
        return Mutant(file, spec.start_pos[0], operator, self._room(item).name, _outcome(result), diff)


def _outcome(result: WorkResult | None) -> str:
    if result is None:
        return "pending"
    if result.test_outcome == TestOutcome.SURVIVED:
        return "survived"
    if result.test_outcome == TestOutcome.KILLED:
        return "timed out" if result.output == "timeout" else "killed"
    return "broken"


def _command(room: Room) -> str:
    pytest = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    return shlex.join(["sh", "-c", " && ".join(shlex.join([*pytest, *run]) for run in room.runs)])


def _python_files(code: Path) -> list[Path]:
    return [code] if code.is_file() else sorted(code.rglob("*.py"))


def _copy_file(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target, follow_symlinks=False)


@contextmanager
def _tests_ended() -> Iterator[None]:
    """Where an exception ends the block, the tests end too: cosmic-ray gives them a session of their own."""
    this = psutil.Process()
    before = this.children()
    try:
        yield
    except BaseException:
        begun = [each for each in this.children() if each not in before]
        for child in [each for each in begun if os.getsid(each.pid) == each.pid]:
            family = [child, *child.children(recursive=True)]
            os.killpg(child.pid, signal.SIGKILL)  # also those whose parent is gone
            for each in family:
                with suppress(psutil.NoSuchProcess):
                    each.kill()
            psutil.wait_procs(family, timeout=_END_S)
        raise


@contextmanager
def _surroundings(tree: Path) -> Iterator[None]:
    """What the tests inherit: the copy comes before an installed checkout, one thread, bounded memory.

    With CI Hypothesis draws the same examples for every mutant, and keeps none: else what one run found fails the next.
    """
    before, folder, limits = dict(os.environ), Path.cwd(), resource.getrlimit(resource.RLIMIT_DATA)
    os.environ.update({"PYTHONPATH": f"{tree}{os.pathsep}{tree / 'client'}", "OMP_NUM_THREADS": "1", "CI": "1"})
    os.chdir(tree)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, limits)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(before)
