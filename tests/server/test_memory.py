"""How much memory a server may hold, how much it holds, and what happens above that."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreground import foreground
from server.errors import CannotStart
from server.launch import TritonServer
from server.memory import PERIOD_S, MemoryWatch, available_bytes, held_bytes, parse_limit
from server.options import ROOT

MIB = 1 << 20


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("off", None),
        ("OFF", None),
        ("90%", 900),
        ("100 %", 1000),
        ("0.5%", 5),
        ("5000000", 5_000_000),
        ("6GiB", 6 << 30),
        ("6 gb", 6 << 30),
        ("1.5G", 3 << 29),
        ("800MiB", 800 << 20),
        ("2t", 2 << 40),
        ("64K", 64 << 10),
        ("12B", 12),
    ],
)
def test_a_limit_is_a_size_a_share_or_none(text: str, limit: int | None) -> None:
    assert parse_limit(text, lambda: 1000) == limit


@pytest.mark.parametrize("text", ["", "0", "0%", "101%", "-1G", "much", "5 GiBs", "1e9", "90%%", "٣GiB", "nan%", "1.G"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(CannotStart, match=r"^--memory-limit: .* is not valid: a size such as 6GiB, a share"):
        parse_limit(text, lambda: 1000)


@given(st.text())
def test_any_text_is_a_limit_or_an_error(text: str) -> None:
    try:
        limit = parse_limit(text, lambda: 1000)
    except CannotStart:
        return
    assert limit is None or limit >= 0


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def looks(held: list[int], limit: int) -> list[bool]:
    """Whether each look, one in a period, finds too much."""
    clock, values = Clock(), iter(held)
    watch = MemoryWatch(limit, lambda: next(values), clock)
    found = []
    for _ in held:
        found.append(watch.check() is not None)
        clock.now += PERIOD_S
    return found


def test_two_looks_in_a_row_above_the_limit_count() -> None:
    assert looks([9, 11, 10, 11, 11, 11, 3, 11], 10) == [False, False, False, False, True, True, False, False]


@given(st.lists(st.integers(0, 20), min_size=1), st.integers(1, 20))
def test_a_look_counts_if_it_and_the_one_before_are_above(held: list[int], limit: int) -> None:
    before = [0, *held]
    assert looks(held, limit) == [a > limit and b > limit for a, b in zip(before, held, strict=False)]


def test_it_looks_once_in_a_period() -> None:
    clock, asked = Clock(), []

    def held() -> int:
        asked.append(clock.now)
        return 30 * MIB

    watch = MemoryWatch(20 * MIB, held, clock)
    said = []
    for _ in range(20):
        said.append(watch.check())
        clock.now += PERIOD_S / 4
    assert len(asked) == 5
    assert said[4] == "30 MiB of memory are held, more than the 20 of --memory-limit"
    assert said[:4] == [None] * 4


Tree = Callable[..., Path]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Files of a system, as far as control groups are concerned."""

    def make(**files: str) -> Path:
        for name, text in files.items():
            path = tmp_path / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return make


def test_without_groups_all_memory_is_available(tree: Tree) -> None:
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert available_bytes(tree()) == whole
    assert available_bytes(tree(proc__self__cgroup="0::/\n", sys__fs__cgroup__x="")) == whole
    root = tree(proc__self__cgroup="0::/a\n")
    (root / "sys/fs/cgroup/a").mkdir(parents=True)
    (root / "sys/fs/cgroup/a/memory.max").write_text("max\n")
    assert available_bytes(root) == whole


@pytest.mark.parametrize(
    ("lines", "files"),
    [
        ("0::/\n", {"memory.max": 5000}),
        ("0::/a/b\n", {"a/b/memory.max": 5000, "a/memory.max": 6000}),
        ("0::/a/b\n", {"a/memory.max": 5000, "memory.max": 7000}),
        ("5:memory:/docker/x\n1:cpu:/other\n", {"memory/docker/x/memory.limit_in_bytes": 5000}),
        ("5:memory:/docker/x\n0::/\n", {"memory/memory.limit_in_bytes": 5000}),
    ],
)
def test_the_smallest_limit_of_the_groups_holds(tree: Tree, lines: str, files: dict[str, int]) -> None:
    root = tree(proc__self__cgroup=lines)
    for name, limit in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{limit}\n")
    assert available_bytes(root) == 5000


def test_held_memory_counts_regions_once_and_no_ended_process() -> None:
    region = Path(f"/dev/shm/vita_audio_test_{os.getpid()}_x")
    own = held_bytes([os.getpid()], None)
    assert MIB < own < 100 << 30
    assert held_bytes([2**30], None) == 0
    try:
        region.write_bytes(bytes(8 * MIB))
        assert held_bytes([], "vita_audio_test_") == 8 * MIB
    finally:
        region.unlink()


@pytest.mark.server
def test_the_cheap_figure_is_near_the_exact_one(server: TritonServer) -> None:
    """Regions are counted whole, mapped files not at all."""
    held, resident = server.held_bytes(), server.resident_bytes()
    assert resident / 2 < held < 3 * resident


@pytest.mark.server
def test_a_server_above_its_limit_is_started_again(engines: Path, tmp_path: Path) -> None:
    """A limit that every start breaks: it is tried again once, then the launcher ends."""
    with foreground(engines, tmp_path, "--memory-limit", "20MiB", "--restarts", "1") as server:
        server.url()
        line = server.line()
        assert "MiB of memory are held, more than the 20 of --memory-limit: restarting; see" in line
        server.url()
        assert "of --memory-limit (2 failures in a row): see" in server.line()
        assert server.process.wait(30) == 1


THREADS = """
import ctypes, sys, threading
from server.memory import take_few_pools
assert take_few_pools() or "few" not in sys.argv
if "few" not in sys.argv:
    ctypes.CDLL(None).mallopt(-8, 64)
barrier = threading.Barrier(12)
malloc = ctypes.CDLL(None).malloc
malloc.restype, malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
pools = set()

def take():
    barrier.wait()
    pools.add(malloc(50_000) >> 26)  # an arena that is not the first begins at a multiple of 64 MiB
    barrier.wait()

threads = [threading.Thread(target=take) for _ in range(12)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(len(pools))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_threads_take_memory_from_few_pools() -> None:
    def pools(*arguments: str) -> int:
        command = [sys.executable, "-c", THREADS, *arguments]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC")}
        return int(
            subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
        )

    assert pools() > 5
    assert pools("few") <= 2
