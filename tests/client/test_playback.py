"""Playing sound while it streams, with a device double in place of `sounddevice`."""

from __future__ import annotations

import sys
import time
import types

import numpy as np
import pytest

from vita_client import InvalidRequest
from vita_client.playback import Player


class PortAudioError(Exception):
    pass


class DeviceDouble:
    """An output device that keeps what it was given; `opened` is the last one."""

    opened: DeviceDouble
    write_s = 0.0
    failure: Exception | None = None

    def __init__(self, samplerate: int, channels: int, dtype: str) -> None:
        assert (samplerate, channels, dtype) == (22_050, 1, "int16")
        self.heard: list[np.ndarray] = []
        self.calls: list[str] = []
        DeviceDouble.opened = self

    def start(self) -> None:
        self.calls.append("start")

    def write(self, samples: np.ndarray) -> None:
        if DeviceDouble.failure is not None:
            raise DeviceDouble.failure
        time.sleep(DeviceDouble.write_s)
        self.heard.append(samples)

    def stop(self) -> None:
        self.calls.append("stop")

    def close(self) -> None:
        self.calls.append("close")


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("sounddevice")
    module.OutputStream = DeviceDouble  # type: ignore[attr-defined]
    module.PortAudioError = PortAudioError  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sounddevice", module)
    monkeypatch.setattr(DeviceDouble, "write_s", 0.0)
    monkeypatch.setattr(DeviceDouble, "failure", None)


def test_everything_is_played_in_order() -> None:
    pieces = [np.arange(n, dtype=np.int16) for n in (5000, 1, 2205)]
    with Player() as player:
        for piece in pieces:
            player.write(piece)
    device = DeviceDouble.opened
    np.testing.assert_array_equal(np.concatenate(device.heard), np.concatenate(pieces))
    assert device.calls == ["start", "stop", "close"]


def test_writing_does_not_wait_and_an_error_stops_the_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DeviceDouble, "write_s", 0.05)
    started_s = time.monotonic()

    def interrupted() -> None:
        with Player() as player:
            player.write(np.zeros(22_050 * 60, np.int16))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert time.monotonic() - started_s < 1
    assert DeviceDouble.opened.calls == ["start", "close"]


def test_a_failing_device_is_reported_to_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DeviceDouble, "failure", PortAudioError("unplugged"))
    player = Player()
    player.write(np.zeros(10, np.int16))
    player._thread.join(5)
    with pytest.raises(OSError, match="the output device failed: unplugged"):
        player.write(np.zeros(10, np.int16))
    player.stop()


def test_a_device_that_fails_at_the_end_is_reported_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DeviceDouble, "failure", PortAudioError("unplugged"))

    def play() -> None:
        with Player() as player:
            player.write(np.zeros(10, np.int16))

    with pytest.raises(OSError, match="the output device failed: unplugged"):
        play()
    assert DeviceDouble.opened.calls == ["start", "close"]


def test_a_wait_for_the_end_can_be_cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Ctrl-C does it in `vita talk`; the device is closed once."""
    monkeypatch.setattr(DeviceDouble, "write_s", 0.05)
    player = Player()
    player.write(np.zeros(22_050 * 60, np.int16))
    join = player._thread.join

    def interrupted() -> None:
        time.sleep(0.2)
        monkeypatch.setattr(player._thread, "join", join)
        raise KeyboardInterrupt

    monkeypatch.setattr(player._thread, "join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        player.finish()
    player.stop()
    player.stop()
    assert 0 < player.played_s < 10
    assert DeviceDouble.opened.calls == ["start", "close"]


def test_no_package_and_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise PortAudioError("no default output device")

    monkeypatch.setattr(sys.modules["sounddevice"], "OutputStream", refuse)
    whole = r"^play: True is not valid: no output device \(no default output device\); write a file with -o$"
    with pytest.raises(InvalidRequest, match=whole):
        Player()
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(InvalidRequest, match="extra 'play'"):
        Player()
