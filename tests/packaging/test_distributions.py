"""What can be installed: the client by itself, in every form; the server from its source tree only; both together."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
BUILD = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"
PACKAGES = ("vita_client", "vita_audio/contract")


def build(source: Path, kind: str, out: Path) -> Path:
    """A distribution of `source`, made by its build backend as pip would, without a network."""
    out.mkdir(exist_ok=True)
    before = set(out.iterdir())
    command = [sys.executable, "-c", BUILD, f"build_{kind}", str(out)]
    subprocess.run(command, cwd=source, check=True, capture_output=True, text=True, timeout=120)
    (made,) = set(out.iterdir()) - before
    return made


def install(wheel: Path, folder: Path) -> Path:
    command = [*PIP, "install", "--quiet", "--no-deps", "--no-index", f"--target={folder}", str(wheel)]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    return folder


def run(*arguments: str, path: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A Python without the editable install of this repository: -S reads no .pth file; others' packages are there."""
    environment = {"PYTHONPATH": f"{path}:{sysconfig.get_path('purelib')}", "PATH": "", "LC_ALL": "C.UTF-8"}
    return subprocess.run(
        [sys.executable, "-S", *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120
    )


def files_of(folder: Path, *packages: str) -> set[str]:
    return {
        str(file.relative_to(folder))
        for package in packages
        for file in (folder / package).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source tree that may be written to: the client's files, links as they are, and links to the other packages."""
    tree = tmp_path_factory.mktemp("tree")
    ignored = shutil.ignore_patterns("__pycache__", "build", "*.egg-info")
    shutil.copytree(ROOT / "client", tree / "client", symlinks=True, ignore=ignored)
    shutil.copytree(ROOT / "vita_audio", tree / "vita_audio", ignore=ignored)
    for file in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, tree)
    for package in (
        "gateway",
        "serving",
        "server",
        "build_engines",
        "training",
        "evaluation",
        "loadtest",
        "benchmarks",
    ):
        (tree / package).symlink_to(ROOT / package)
    return tree


@pytest.fixture(scope="module")
def client_wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tree / "client", "wheel", tmp_path_factory.mktemp("wheels"))


def test_the_wheel_of_the_client_holds_the_client_and_the_contract(client_wheel: Path, tree: Path) -> None:
    with zipfile.ZipFile(client_wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert names == files_of(ROOT / "client", "vita_client") | files_of(ROOT, "vita_audio/contract")
        errors = archive.read("vita_audio/contract/errors.py")
        assert errors == (ROOT / "vita_audio/contract/errors.py").read_bytes()
        (information,) = {name.split("/")[0] for name in archive.namelist() if ".dist-info/" in name}
        metadata = Parser().parsestr(archive.read(f"{information}/METADATA").decode())
        licence = archive.read(f"{information}/licenses/LICENSE")
    wanted = [line for line in (ROOT / "client/requirements.txt").read_text().splitlines() if line[0] != "#"]
    assert [line for line in metadata.get_all("Requires-Dist", []) if "extra" not in line] == wanted
    assert metadata["Requires-Python"] == ">=3.10"
    assert licence == (ROOT / "LICENSE").read_bytes()


def test_a_source_archive_of_the_client_gives_the_same_wheel(tree: Path, client_wheel: Path, tmp_path: Path) -> None:
    archive = build(tree / "client", "sdist", tmp_path / "sdist")
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path, filter="data")
    (source,) = tmp_path.glob("vita_audio_client-*")
    wheel = build(source, "wheel", tmp_path / "wheel")
    assert zipfile.ZipFile(wheel).namelist() == zipfile.ZipFile(client_wheel).namelist()


def test_the_installed_client_needs_nothing_of_the_repository(client_wheel: Path, tmp_path: Path) -> None:
    site = install(client_wheel, tmp_path / "site")
    assert {entry.name for entry in site.iterdir() if not entry.name.endswith(".dist-info")} <= {
        "vita_client",
        "vita_audio",
        "bin",
    }
    code = """
import importlib.util, sys
import vita_client, vita_client.cli, vita_audio.contract.request
own = {name: module for name, module in sys.modules.items() if name.split(".")[0] in ("vita_client", "vita_audio")}
assert all(module.__file__ is None or module.__file__.startswith(sys.argv[1]) for module in own.values()), own
assert not [name for name in ("server", "serving", "training", "loadtest", "vita_audio.engines")
            if importlib.util.find_spec(name)]
"""
    done = run("-c", code, str(site), path=str(site), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    helped = run("-m", "vita_client", "--help", path=str(site), cwd=tmp_path)
    assert helped.returncode == 0, helped.stderr
    assert all(command in helped.stdout for command in ("say", "ask", "chat", "transcribe", "health"))
    asked = run("-m", "vita_client", "health", "--url", "127.0.0.1:1", path=str(site), cwd=tmp_path)
    assert (asked.returncode, asked.stderr.count("\n")) == (3, 1)


def test_the_server_is_not_built_into_a_wheel(tree: Path, tmp_path: Path) -> None:
    command = [*PIP, "wheel", "--no-deps", "--no-index", "--no-build-isolation", f"--wheel-dir={tmp_path}", str(tree)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    said = [line.strip() for line in (done.stdout + done.stderr).splitlines() if "source tree" in line]
    assert said == [
        "the server runs from its source tree: use pip install --editable '.[serve]'; "
        "the client alone is pip install ./client"
    ]
    assert list(tmp_path.iterdir()) == []


IMPORTS = """
import site, sys
for folder in sys.argv[2:]:
    site.addsitedir(folder)  # reads the .pth files of editable installs
import vita_client, vita_audio.contract.request, vita_audio.generation.scheduler, vita_audio.engines.manifest
import server.options, serving.settings, evaluation, loadtest
assert server.options.__file__ == sys.argv[1], server.options.__file__
print(vita_audio.contract.request.__file__)
print(vita_client.__file__)
"""


def test_an_editable_install_of_the_project_has_the_client_and_stands_beside_one(
    tree: Path, client_wheel: Path, tmp_path: Path
) -> None:
    project = install(build(tree, "editable", tmp_path / "wheels"), tmp_path / "project")
    client = install(client_wheel, tmp_path / "client")
    editable_client = install(build(tree / "client", "editable", tmp_path / "wheels"), tmp_path / "editable_client")

    options = str((tree / "server" / "options.py").resolve())

    def where(*sites: Path) -> list[Path]:
        folders = [str(folder) for folder in sites]
        done = run("-c", IMPORTS, options, *folders, path=":".join(folders), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return [Path(os.path.realpath(line)).parents[1] for line in done.stdout.splitlines()]

    assert where(project) == [tree / "vita_audio", tree / "client"]
    for sites in ([project, client], [client, project]):
        assert where(*sites) == [client / "vita_audio", client]
    for sites in ([project, editable_client], [editable_client, project]):
        assert where(*sites) == [tree / "vita_audio", tree / "client"]
