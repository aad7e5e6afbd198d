"""Encrypted connections: server certificates, mutual TLS, and what happens when they do not fit."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from client_protocol_double import ProtocolDouble
from vita_client import InvalidRequest, ServerUnavailable, Tls

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates of this test")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a root (ca), and a server and a client certificate it signed, each NAME.pem and NAME.key."""
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True, timeout=30)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *curve, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=test root")
    (folder / "names").write_text("subjectAltName=DNS:localhost")
    for name in ("server", "client"):
        openssl("req", *curve, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signing = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names")
        openssl("x509", "-req", "-in", f"{name}.csr", *signing, "-out", f"{name}.pem")
    return folder


@pytest.fixture(scope="module")
def double(certificates: Path) -> Iterator[ProtocolDouble]:
    """A double that asks its clients for a certificate."""
    pair = ((certificates / "server.key").read_bytes(), (certificates / "server.pem").read_bytes())
    root = (certificates / "ca.pem").read_bytes()
    server = ProtocolDouble(grpc.ssl_server_credentials([pair], root, require_client_auth=True))
    yield server
    server.close()


def test_mutual_tls(double: ProtocolDouble, certificates: Path, connect: Callable[..., Any]) -> None:
    tls = Tls(certificates / "ca.pem", certificates / "client.pem", certificates / "client.key")
    with connect(double.url, tls=tls) as client:
        assert client.health().ready
        assert client.collect("chunks 2").text
    address = f"127.0.0.1:{double.port}"
    with connect(address, tls=Tls(tls.root_ca, tls.certificate, tls.key, server_name="localhost")) as client:
        assert client.health().ready


@pytest.mark.parametrize("tls", ["no tls", "no certificate", "no root"])
def test_connections_that_do_not_fit_fail_cleanly(
    double: ProtocolDouble, certificates: Path, connect: Callable[..., Any], tls: str
) -> None:
    settings = {
        "no tls": None,
        "no certificate": Tls(certificates / "ca.pem"),
        "no root": Tls(None, certificates / "client.pem", certificates / "client.key"),
    }
    with connect(double.url, tls=settings[tls]) as client:
        with pytest.raises(ServerUnavailable, match="no answer"):
            client.collect("chunks 1", timeout_s=10)
        assert not client.health().ready


def test_bad_tls_files(certificates: Path, connect: Callable[..., Any]) -> None:
    with pytest.raises(InvalidRequest, match=r"TLS: 'certificate' .*belong together"):
        connect(tls=Tls(certificate=certificates / "client.pem"))
    with pytest.raises(InvalidRequest, match=r"TLS: 'key' .*belong together"):
        connect(tls=Tls(key=certificates / "client.key"))
    with pytest.raises(InvalidRequest, match="it cannot be read"):
        connect(tls=Tls(certificates / "nowhere.pem"))
    ca, certificate, key = (certificates / name for name in ("ca.pem", "client.pem", "client.key"))
    with pytest.raises(
        InvalidRequest, match=r"not valid: root_ca has no line -----BEGIN CERTIFICATE-----; convert it to PEM"
    ):
        connect(tls=Tls(certificates / "names"))
    with pytest.raises(InvalidRequest, match=r"not valid: certificate has no line -----BEGIN CERTIFICATE-----"):
        connect(tls=Tls(ca, key, key))
    with pytest.raises(InvalidRequest, match=r"not valid: key has no line -----BEGIN PRIVATE KEY-----"):
        connect(tls=Tls(ca, certificate, certificate))


@pytest.mark.parametrize("form", ["pkcs8 -topk8 -v2 aes128", "ec -aes128"])
def test_a_key_with_a_passphrase_is_refused(
    certificates: Path, tmp_path: Path, connect: Callable[..., Any], form: str
) -> None:
    key = tmp_path / "locked.key"
    files = ("-in", str(certificates / "client.key"), "-out", str(key))
    subprocess.run(
        ["openssl", *form.split(), "-passout", "pass:word", *files], check=True, capture_output=True, timeout=30
    )
    with pytest.raises(InvalidRequest, match=r"not valid: key may have no passphrase; decrypt it"):
        connect(tls=Tls(certificates / "ca.pem", certificates / "client.pem", key))


def test_what_is_around_a_certificate_is_left_alone(
    double: ProtocolDouble, certificates: Path, tmp_path: Path, connect: Callable[..., Any]
) -> None:
    root, key = tmp_path / "ca.pem", tmp_path / "client.key"
    root.write_bytes(b"# of Ren\xe9\r\n" + (certificates / "ca.pem").read_bytes().replace(b"\n", b"\r\n"))
    command = ["openssl", "ec", "-in", str(certificates / "client.key"), "-out", str(key)]
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    assert b"-----BEGIN EC PRIVATE KEY-----" in key.read_bytes()
    with connect(double.url, tls=Tls(root, certificates / "client.pem", key)) as client:
        assert client.health().ready
