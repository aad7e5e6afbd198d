"""Makes self-signed certificates for localhost."""

from __future__ import annotations

import subprocess
from pathlib import Path

from server.options import TlsFiles


def make_certificate(folder: Path, name: str) -> TlsFiles:
    files = TlsFiles(folder / f"{name}.pem", folder / f"{name}.key")
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subprocess.run(
        ["openssl", "req", "-x509", *new_key, "-days", "2", *subject, "-out", files.certificate, "-keyout", files.key],
        check=True,
        capture_output=True,
    )
    return files
