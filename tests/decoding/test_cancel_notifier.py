"""Calls to the language model: in order, one at a time, and a thread that ends when it is asked to."""

from __future__ import annotations

import threading

from vita_audio.contract.messages import Cancel, Released
from vita_audio.decoding.cancel_notifier import CancelNotifier


def test_calls_are_made_in_order_and_what_follows_a_release_follows_its_answer() -> None:
    said: list[object] = []
    notifier = CancelNotifier(said.append)
    notifier.cancel("a")
    notifier.release("b", then=lambda: said.append("then"))
    notifier.cancel("c")
    assert notifier.close(20)
    assert said == [Cancel("a"), Released("b"), "then", Cancel("c")]
    assert (notifier.cancels, notifier.errors) == (2, 0)


def test_a_close_that_a_call_holds_up_says_so() -> None:
    go_on = threading.Event()

    def notify(message: Cancel | Released) -> None:
        assert go_on.wait(20)

    notifier = CancelNotifier(notify)
    notifier.cancel("a")
    assert not notifier.close(0.05)
    go_on.set()
    assert notifier.close(20)


def test_a_call_that_fails_is_counted_and_its_stream_released() -> None:
    released: list[str] = []

    def notify(message: Cancel | Released) -> None:
        raise ConnectionError("no answer")

    notifier = CancelNotifier(notify)
    notifier.release("a", then=lambda: released.append("a"))
    notifier.cancel("b")
    assert notifier.close(20)
    assert (released, notifier.cancels, notifier.errors) == (["a"], 1, 2)
