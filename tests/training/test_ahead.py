"""What is made ahead in threads: the same items in the same order, faults where they are asked for, exact resume."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from training.ahead import in_threads
from training.language_model.batch import Batch, Sample
from training.language_model.batch_stream import BatchStream
from training.language_model.token_set import PackStream, TokenSet


def test_steps_are_made_once_and_before_they_are_asked_for() -> None:
    made: list[tuple[int, str]] = []

    def make(step: int) -> int:
        made.append((step, threading.current_thread().name))
        return 10 * step

    ahead = in_threads(make, itertools.count(5), ahead=1, threads=1)
    assert [next(ahead) for _ in range(3)] == [50, 60, 70]
    ahead.close()
    assert [step for step, _ in made] == [5, 6, 7, 8]
    assert all(name != threading.current_thread().name for _, name in made)
    at_once = in_threads(make, itertools.count(1), ahead=0)
    assert next(at_once) == 10
    assert made[-1] == (1, threading.current_thread().name)


def test_a_fault_is_raised_where_its_step_is_asked_for() -> None:
    def make(step: int) -> int:
        if step == 2:
            raise ValueError("no second step")
        return step

    for most in (0, 1, 3):
        ahead = in_threads(make, itertools.count(1), ahead=most, threads=1)
        assert next(ahead) == 1
        with pytest.raises(ValueError, match="no second step"):
            next(ahead)


def test_threads_keep_the_order_and_do_not_run_away() -> None:
    taken = 0
    most_ahead = 0

    def items() -> Iterator[int]:
        nonlocal most_ahead
        for item in range(1000):
            most_ahead = max(most_ahead, item - taken)
            yield item

    for number, square in enumerate(in_threads(lambda item: item * item, items())):
        assert square == number * number
        taken += 1
    assert taken == 1000
    assert most_ahead <= 257


def test_a_fault_in_a_thread_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        list(in_threads(lambda item: 1 // item, [2, 1, 0]))


def stream() -> PackStream:
    rng = np.random.default_rng(0)
    samples = [Sample(rng.integers(0, 50, n).astype(np.int32), np.ones(n, bool)) for n in rng.integers(5, 20, 30)]
    return PackStream(TokenSet.of(samples, ["text"] * 30), 64, seed=3)


def same(a: Batch, b: Batch) -> bool:
    return torch.equal(a.tokens, b.tokens) and torch.equal(a.bounds, b.bounds)


@pytest.mark.parametrize("ahead", [0, 1, 4])
def test_batches_ahead_are_the_same_and_resume_where_they_were_taken(ahead: int) -> None:
    plain, early = BatchStream(stream()), BatchStream(stream(), ahead)
    wanted = [next(plain) for _ in range(20)]
    for batch in wanted[:9]:
        assert same(next(early), batch)
    state = early.state_dict()
    again = BatchStream(stream(), ahead)
    next(again)  # what it had drawn before does not matter
    again.load_state_dict(state)
    assert again.state_dict() == state
    for batch in wanted[9:]:
        assert same(next(again), batch)
        assert same(next(early), batch)
