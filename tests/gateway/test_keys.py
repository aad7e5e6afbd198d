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
