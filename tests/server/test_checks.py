"""Checks before the start: each fault is one line that names what is wrong and what to do."""

from __future__ import annotations

import importlib.util
import shutil
import socket
import subprocess
import sys
import sysconfig
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from certificates import make_certificate
from server import locate
from server.__main__ import parse_options
from server.checks import check_options
from server.command import LOCK, RESTRICTED, triton_arguments
from server.errors import CannotStart
from server.locate import Triton, check_numpy, find_shared_python, find_triton
from server.options import ServerOptions, TlsFiles
from server.ports import claim_ports, is_loopback
from server.stub_python import assemble_python, installed_packages


def refusal(options: ServerOptions) -> str:
    with pytest.raises(CannotStart) as caught:
        check_options(options)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_missing_engines_name_the_command_that_builds_them(tmp_path: Path) -> None:
    text = refusal(ServerOptions(engines=tmp_path / "none"))
    assert f"{tmp_path / 'none'}" in text
    assert "python -m build_engines --checkpoint DIR --target cpu --out" in text


def test_engines_that_do_not_fit_name_the_field(engines: Path, tmp_path: Path) -> None:
    check_options(ServerOptions(engines=engines))
    copy = tmp_path / "engines"
    shutil.copytree(engines, copy)
    (copy / "vocoder.onnx").write_bytes(b"x")
    assert "files.vocoder.onnx.bytes" in refusal(ServerOptions(engines=copy))
    other = tmp_path / "other"
    other.mkdir()
    (other / "a").touch()
    assert "checkpoint_sha256" in refusal(ServerOptions(engines=engines, checkpoint=other))
    assert "target is 'cpu' but 'gpu' is asked for" in refusal(ServerOptions(engines=engines, profile="gpu"))


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1"])
def test_listening_to_the_network_needs_the_flag(engines: Path, host: str) -> None:
    options = ServerOptions(engines=engines, host=host)
    assert "--allow-remote" in refusal(options)
    check_options(replace(options, allow_remote=True))


def test_a_host_of_the_metrics_without_an_address_is_named(engines: Path) -> None:
    with pytest.raises(CannotStart, match=r"^--metrics-host: 'no\.such\.host\.invalid' has no address"):
        check_options(ServerOptions(engines=engines, metrics_host="no.such.host.invalid"))


def test_loopback_addresses() -> None:
    assert is_loopback("127.0.0.1")
    assert is_loopback("127.8.8.8")
    assert is_loopback("localhost")
    assert not is_loopback("0.0.0.0")
    with pytest.raises(CannotStart, match="--host: 'no such host' has no address"):
        is_loopback("no such host")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"slots": 0}, "--slots: 0 is not valid: at least 1"),
        ({"queue": -1}, "--queue: -1"),
        ({"threads": 0}, "--threads: 0"),
        ({"exit_timeout_s": -1}, "--exit-timeout: -1"),
        ({"profile": "tpu"}, "--profile: 'tpu' is not valid: choose one of cpu, gpu"),
        ({"device": "cuda:1"}, "--device: 'cuda:1' is not valid: choose one of cuda:0, cpu"),
        ({"mps": "yes"}, "--mps: 'yes' is not valid: choose one of on, off, auto"),
        (
            {"gpu_priority": "prompt"},
            "--gpu-priority: 'prompt' is not valid: choose one of equal, speech_lm, audio_dec",
        ),
        ({"gpu_priority": "speech_lm"}, "--gpu-priority: speech_lm needs a GPU used at the same time: add --mps"),
        ({"decoder_precision": "fp8"}, "--decoder-precision: 'fp8' is not valid: choose one of float32, tf32, fp16"),
        ({"speech_precision": ""}, "--speech-precision: '' is not valid: choose one of float32"),
        ({"kernels_off": "gate,gates"}, "--kernels-off: 'gates' is not valid: names between commas of norm, enter"),
        ({"repository": Path("/nonexistent")}, "is not a model repository"),
    ],
)
def test_numbers_and_folders(changes: dict, words: str) -> None:
    assert words in refusal(replace(ServerOptions(), **changes))


def test_the_smallest_numbers_are_taken(engines: Path) -> None:
    least: dict[str, Any] = {"slots": 1, "queue": 0, "threads": 1, "exit_timeout_s": 0}
    check_options(ServerOptions(engines=engines, **least, restarts=0, stall_timeout_s=0))


def test_taken_ports_are_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for flag, changes in {
            "--grpc-port": {"grpc_port": port},
            "--metrics-port": {"metrics_port": port},
            "--http-port": {"http_port": port},
        }.items():
            with pytest.raises(CannotStart, match=f"^{flag}: port {port} of 127.0.0.1 cannot be used .*in use"):
                claim_ports(replace(ServerOptions(grpc_port=0, metrics_port=0), **changes))


def test_the_same_port_twice_and_a_port_out_of_range_are_refused() -> None:
    free = claim_ports(ServerOptions(grpc_port=0, metrics_port=0)).grpc_port
    with pytest.raises(CannotStart, match=f"^--metrics-port: port {free}"):
        claim_ports(ServerOptions(grpc_port=free, metrics_port=free))
    with pytest.raises(CannotStart, match=r"^--grpc-port: port 70000"):
        claim_ports(ServerOptions(grpc_port=70_000, metrics_port=0))


def test_free_ports_are_chosen_and_differ() -> None:
    options = claim_ports(ServerOptions(grpc_port=0, metrics_port=0, http_port=0))
    assert len({options.grpc_port, options.metrics_port, options.http_port, 0}) == 4
    assert claim_ports(ServerOptions(grpc_port=0, metrics_port=0)).http_port is None


def test_tls_files_are_checked(engines: Path, tmp_path: Path) -> None:
    mine, other = make_certificate(tmp_path, "mine"), make_certificate(tmp_path, "other")
    options = ServerOptions(engines=engines)
    check_options(replace(options, tls=mine))
    check_options(replace(options, tls=replace(mine, client_ca=other.certificate)))
    assert "--tls-key: " in refusal(replace(options, tls=replace(mine, key=tmp_path / "none")))
    assert "not a PEM certificate and its" in refusal(replace(options, tls=replace(mine, key=other.key)))
    assert "--tls-ca: " in refusal(replace(options, tls=replace(mine, client_ca=mine.key)))


def test_no_tritonserver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(CannotStart, match=r"pip install nvidia-pytriton==0\.7\.0"):
        find_triton()


def test_tritonserver_on_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    binary = tmp_path / "bin" / "tritonserver"
    binary.parent.mkdir()
    binary.touch(mode=0o755)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(binary.parent))
    with pytest.raises(CannotStart, match="triton_python_backend_stub is missing"):
        find_triton()
    backend = tmp_path / "backends" / "python"
    backend.mkdir(parents=True)
    (backend / "triton_python_backend_stub").touch()
    found = find_triton()
    assert (found.binary, found.python_backend) == (binary, backend)


def test_the_wheel_has_no_stub_for_this_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locate.sys, "version_info", Version(3, 99))
    with pytest.raises(CannotStart, match=r"no Python stub for Python 3\.99 \(it has 3\.8, 3\.9, 3\.10, .*3\.13\)"):
        find_triton()


class Version(tuple):
    """A stand-in for sys.version_info."""

    def __new__(cls, major: int, minor: int) -> Version:
        return super().__new__(cls, (major, minor))

    major = property(lambda self: self[0])
    minor = property(lambda self: self[1])


def test_stub_of_another_python(tmp_path: Path) -> None:
    stub = tmp_path / "stub"
    stub.write_bytes(b"\0libpython3.9.so.1.0\0")
    with pytest.raises(CannotStart, match=r"for Python 3\.9, but Python 3\.\d+ is running"):
        find_shared_python(stub)
    stub.write_bytes(b"nothing")
    with pytest.raises(CannotStart, match="names no shared Python library"):
        find_shared_python(stub)


def test_static_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub = tmp_path / "stub"
    stub.write_bytes(f"\0libpython3.{sys.version_info.minor}.so.1.0\0".encode())
    find_shared_python(stub)
    monkeypatch.setattr(sysconfig, "get_config_var", lambda name: "/nonexistent")
    monkeypatch.setattr(sys, "base_prefix", "/nonexistent")
    monkeypatch.setattr(locate.ctypes.util, "find_library", lambda name: None)
    with pytest.raises(CannotStart, match=r"static build.*--enable-shared"):
        find_shared_python(stub)


def test_a_server_unpacked_without_file_modes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    home = tmp_path / "pytriton" / "tritonserver"
    stub = home / "python_backend_stubs" / f"3.{sys.version_info.minor}" / "triton_python_backend_stub"
    for file in (tmp_path / "pytriton" / "__init__.py", home / "bin" / "tritonserver", stub):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o644)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(CannotStart, match=r"bin/tritonserver is not executable.*chmod \+x"):
        find_triton()


def test_numpy_2_is_refused() -> None:
    check_numpy("1.26.4")
    with pytest.raises(CannotStart, match=r"NumPy 2\.1\.0 .*numpy<2"):
        check_numpy("2.1.0")


def test_stubs_get_this_environment(tmp_path: Path) -> None:
    """A Python found through the assembled folder imports the packages and the repository of this one."""
    python = assemble_python(tmp_path) / "python3"
    code = "import numpy, server.options; print(numpy.__file__, server.options.__file__)"
    done = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=True, cwd="/")
    import numpy

    import server.options

    assert done.stdout.split() == [numpy.__file__, server.options.__file__]


def arguments(**changes: object) -> list[str]:
    options = replace(ServerOptions(grpc_port=1, metrics_port=2), **changes)  # type: ignore[arg-type]
    triton = Triton("test", Path("/t"), Path("/b"), Path("/s"), ())
    return triton_arguments(options, triton, Path("/backends"), "prefix")


def test_secure_defaults_of_the_command_line() -> None:
    line = arguments()
    assert {
        "--allow-gpu-metrics=false",
        "--allow-http=false",
        "--grpc-address=127.0.0.1",
        "--metrics-address=127.0.0.1",
    } <= set(line)
    lock = next(part for part in line if part.startswith("--grpc-restricted-protocol="))
    assert lock.startswith(f"--grpc-restricted-protocol={RESTRICTED}:{LOCK}=")
    assert {"shared-memory", "model-repository"} <= set(RESTRICTED.split(","))
    assert LOCK.lower() != LOCK  # no gRPC client can send such a header
    assert lock != next(part for part in arguments() if part.startswith("--grpc-restricted-protocol="))
    assert not any(part.startswith(("--http-port", "--grpc-use-ssl")) for part in line)


NETWORK_ARGUMENTS = """
    --allow-http=true --http-port=5 --http-address=0.0.0.0 --grpc-address=0.0.0.0 --metrics-address=127.0.0.1
    --grpc-use-ssl=true --grpc-server-cert=/cert --grpc-server-key=/key --grpc-use-ssl-mutual=true --grpc-root-cert=/ca
    --model-config-name=gpu --log-verbose=2
"""


def test_what_is_asked_for_reaches_the_command_line() -> None:
    tls = TlsFiles(Path("/cert"), Path("/key"), Path("/ca"))
    line = arguments(http_port=5, host="0.0.0.0", tls=tls, profile="gpu", log_verbose=2)
    assert set(NETWORK_ARGUMENTS.split()) <= set(line)
    assert any(part.startswith("--http-restricted-api=") for part in line)


ALL_FLAGS = """
    --engines e --checkpoint c --profile gpu --device cpu --host h --allow-remote --grpc-port 1 --http-port 2
    --metrics-port 3 --slots 4 --queue 5 --threads 6 --tls-cert a --tls-key b --tls-ca d --exit-timeout 7
    --log-verbose 8 --log-file l --restarts 9 --stall-timeout 10 --front off --memory-limit 12
"""


def test_options_of_the_command() -> None:
    assert parse_options([]) == (ServerOptions(front="auto"), None)
    options, log = parse_options(ALL_FLAGS.split())
    assert log == Path("l")
    assert options == ServerOptions(
        engines=Path("e"),
        checkpoint=Path("c"),
        profile="gpu",
        device="cpu",
        host="h",
        allow_remote=True,
        grpc_port=1,
        http_port=2,
        metrics_port=3,
        slots=4,
        queue=5,
        threads=6,
        tls=TlsFiles(Path("a"), Path("b"), Path("d")),
        exit_timeout_s=7,
        log_verbose=8,
        restarts=9,
        stall_timeout_s=10,
        front="off",
        memory_limit="12",
    )


@pytest.mark.parametrize("line", ["--tls-cert a", "--tls-key a", "--tls-ca a"])
def test_half_of_tls_is_refused(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_options(line.split())
    assert "--tls-cert and --tls-key belong together" in capsys.readouterr().err


def test_gpu_servers_may_take_longer_to_start() -> None:
    assert ServerOptions().start_limit_s == 120
    assert ServerOptions(profile="gpu").start_limit_s == 1800
    assert ServerOptions(profile="gpu", start_timeout_s=5).start_limit_s == 5


def test_stubs_get_packages_and_not_the_standard_library() -> None:
    found = [path.resolve() for path in installed_packages()]
    standard = Path(sysconfig.get_path("stdlib")).resolve()
    assert Path(pytest.__file__).resolve().parents[1] in found
    assert standard not in found
    assert standard / "lib-dynload" not in found
    assert all(path.is_dir() for path in found)
