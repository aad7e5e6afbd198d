"""What Triton gets are links with plain names, wherever they lead."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.backend import APART, ONE_PROCESS, TOGETHER, link_folders, link_libraries, plain_path
from server.options import ServerOptions


def make_models(folder: Path) -> None:
    for model in ("prompt", *APART, *TOGETHER, "vita_audio"):
        (folder / model / "1").mkdir(parents=True)
        (folder / model / "config.pbtxt").touch()
    one_process = folder / "vita_audio" / ONE_PROCESS
    one_process.parent.mkdir()
    one_process.touch()
    (folder / "notes").mkdir()


def test_one_process_has_its_own_models_and_ensemble(tmp_path: Path) -> None:
    make_models(tmp_path / "models")
    (tmp_path / "private").mkdir()
    linked = link_folders(ServerOptions(repository=tmp_path / "models", one_process=True), tmp_path / "private")
    assert {model.name for model in linked.repository.iterdir()} == {"prompt", "speech", "delivery", "vita_audio"}
    ensemble = linked.repository / "vita_audio"
    assert (ensemble / "config.pbtxt").resolve() == tmp_path / "models" / "vita_audio" / ONE_PROCESS
    assert (ensemble / "1").resolve() == tmp_path / "models" / "vita_audio" / "1"


def test_model_repository_and_libraries_are_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    private, odd = tmp_path / "private", tmp_path / "a b;$c:d"
    private.mkdir()
    make_models(odd / "models")
    monkeypatch.chdir(odd)
    linked = link_folders(ServerOptions(repository=Path("models"), engines=Path("engines")), private)
    assert linked.repository == private / "models"
    assert {model.name: model.resolve() for model in linked.repository.iterdir()} == {
        name: odd / "models" / name for name in ("prompt", "speech_lm", "audio_decoder", "vita_audio")
    }
    assert linked.engines == odd / "engines"  # never reaches a shell; messages show the name that was given
    links = link_libraries([odd, tmp_path], private)
    assert [link.resolve() for link in links] == [odd, tmp_path]
    assert all(link.is_relative_to(private) for link in links)


def test_engines_whose_name_is_not_ascii_are_linked(tmp_path: Path) -> None:
    (tmp_path / "ä").mkdir()
    linked = link_folders(ServerOptions(engines=tmp_path / "ä"), tmp_path)
    assert linked.engines == tmp_path / "engines"
    assert linked.engines.resolve() == tmp_path / "ä"


@given(name=st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=50))
def test_a_plain_path_is_one_line_of_ascii(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    link = tmp_path_factory.mktemp("plain") / "link"
    path = plain_path(Path("/folder") / name, link)
    assert str(path).isascii()
    assert len(str(path).splitlines()) == 1
    assert path == link or not link.is_symlink()
