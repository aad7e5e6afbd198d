"""API keys: their file, its errors, and who is let in."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from gateway import keys
from gateway.errors import GatewayError
from gateway.keys import KeyFile, Limits, add_key, new_key, read_keys
from vita_audio.contract.errors import InvalidRequest

HASH = "sha256:" + "a" * 64


def test_a_new_key_is_found_by_its_hash_and_is_not_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    first = add_key(file, "page", Limits(streams=2, minutes_per_hour=1.5))
    second = add_key(file, "phone", Limits())
    assert first != second
    assert len(first) > 40
    assert first not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    found = KeyFile(file).find(first)
    assert (found.name, found.limits) == ("page", Limits(2, 1.5, None))
    assert KeyFile(file).find(second).limits == Limits()


def test_a_line_without_an_end_stays_whole(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    first = add_key(file, "page", Limits(streams=2))
    file.write_text(file.read_text().removesuffix("\n"))
    second = add_key(file, "phone", Limits())
    assert [KeyFile(file).find(key).name for key in (first, second)] == ["page", "phone"]
    assert file.read_text().count("\n") == 2


@pytest.mark.parametrize("limits", [Limits(1_000_000), Limits(None, 0.1, 1_234_567.0), Limits(999_999_999, 1e-4)])
def test_limits_are_written_as_they_are(tmp_path: Path, limits: Limits) -> None:
    key = add_key(tmp_path / "keys", "page", limits)
    assert KeyFile(tmp_path / "keys").find(key).limits == limits


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        (Limits(10**9), "streams: 1000000000 is not valid: it is a number above 0, a whole one, of at most 9 digits"),
        (Limits(0), "streams: 0 is not valid"),
        (Limits(None, float("inf")), "minutes_per_hour: inf is not valid: it is a number above 0, of at most 9 digits"),
        (Limits(None, None, 1e20), "minutes_per_day: 1e\\+20 is not valid"),
    ],
)
def test_a_limit_that_no_line_can_have(tmp_path: Path, limits: Limits, says: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^{says}"):
        add_key(tmp_path / "keys", "page", limits)
    assert not (tmp_path / "keys").exists()


def test_every_key_is_another_one() -> None:
    assert len({new_key("a", Limits())[0] for _ in range(100)}) == 100


@pytest.mark.parametrize("presented", [None, "", "vita-x", "schlüssel", "\udce4", "a" * 100_000])
def test_other_keys_are_refused(tmp_path: Path, presented: str | None) -> None:
    add_key(tmp_path / "keys", "page", Limits())
    with pytest.raises(GatewayError) as refused:
        KeyFile(tmp_path / "keys").find(presented)
    assert refused.value.code == "invalid_api_key"
    assert not presented or presented not in str(refused.value)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("page", "NAME sha256:HASH"),
        ("page vita-secret", "NAME sha256:HASH"),
        (f"sei/te {HASH}", "NAME sha256:HASH"),
        (f"page {HASH.upper()}", "NAME sha256:HASH"),
        (f"page {HASH} streams=0", "streams is a number above 0, a whole one"),
        (f"page {HASH} streams=1.5", "streams is a number above 0, a whole one"),
        (f"page {HASH} streams=1 streams=2", "'streams' is no limit, or is there twice"),
        (f"page {HASH} minutes_per_day=-1", "minutes_per_day is a number above 0"),
        (f"page {HASH} minutes_per_day=nan", "minutes_per_day is a number above 0"),
        (f"page {HASH} speed=3", "'speed' is no limit"),
        (f"page {HASH}\npage {HASH}", "two lines have the same name"),
        ("\xff", "it is not UTF-8"),
    ],
)
def test_a_wrong_line_is_named_and_never_shown(tmp_path: Path, line: str, says: str) -> None:
    file = tmp_path / "keys"
    file.write_bytes(b"# ours\n\n" + line.encode("latin-1"))
    with pytest.raises(InvalidRequest) as wrong:
        read_keys(file)
    assert says in str(wrong.value)
    assert "secret" not in str(wrong.value)
    assert "\n" not in str(wrong.value)


def test_a_file_that_is_not_there_and_a_name_that_is_taken(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="cannot be read"):
        KeyFile(tmp_path / "none")
    with pytest.raises(InvalidRequest, match="cannot be written"):
        add_key(tmp_path / "none" / "keys", "page", Limits())
    add_key(tmp_path / "keys", "page", Limits())
    with pytest.raises(InvalidRequest, match="remove its line first"):
        add_key(tmp_path / "keys", "page", Limits())
    with pytest.raises(InvalidRequest, match="1 to 64 letters"):
        add_key(tmp_path / "keys", "the page", Limits())


def test_a_changed_file_counts_at_once_and_a_broken_one_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(keys, "_LOOK_AGAIN_S", 0.0)
    file = tmp_path / "keys"
    first = add_key(file, "page", Limits())
    open_file = KeyFile(file)
    second = add_key(file, "phone", Limits())
    assert open_file.find(second).name == "phone"
    kept = file.read_text().splitlines()[1]
    file.write_text("nonsense\n")
    assert open_file.find(first).name == "page"
    assert "the keys stay as they were" in caplog.text
    file.write_text(kept + "\n")
    with pytest.raises(GatewayError):
        open_file.find(first)
    file.unlink()
    assert open_file.find(second).name == "phone"
