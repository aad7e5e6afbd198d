"""What Triton gets are links with plain names, wherever they lead."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.backend import link_folders, link_libraries, plain_path
from server.options import ServerOptions


def test_model_repository_and_libraries_are_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    private, odd = tmp_path / "private", tmp_path / "a b;$c:d"
    private.mkdir()
    (odd / "models").mkdir(parents=True)
    monkeypatch.chdir(odd)
    linked = link_folders(ServerOptions(repository=Path("models"), engines=Path("engines")), private)
    assert linked.repository == private / "models"
    assert linked.repository.resolve() == odd / "models"
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
