"""Packs the server, and what a PyTorch image lacks for it, into small archives for a machine without a package index.

python -m deploy.offline.pack OUT      OUT/{server,packages,grpc}.tar.xz; how to unpack them: README.md
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from pathlib import Path

from deploy.offline.archive import COMPRESSION, check_archive, write_archive
from deploy.offline.errors import CannotPack
from deploy.offline.running_python import copy_running_python
from deploy.offline.wheels import download, unpack
from vita_audio.stopping import stop_on_signals

#: NumPy 1.26 has no wheels for later ones.
PYTHONS = ("3.10", "3.11", "3.12")


def pack(
    out: Path, python: str, *, with_python: bool = False, compression: dict[str, int] = COMPRESSION
) -> dict[Path, int]:
    """Write the archives for `python` ("3.12") on x86-64 Linux into `out`: all of them, checked, or none.

    Args:
        with_python: also python.tar.xz, a copy of the running Python; for machines without a libpython.
        compression: settings of the LZMA2 filter.

    Returns:
        The number of files in each archive.

    Raises:
        CannotPack: a wheel cannot be had, or an archive lacks a file or holds a wrong one.
        OSError: `out` cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    # Inside `out`, so that finished archives only have to be renamed.
    with tempfile.TemporaryDirectory(dir=out, prefix=".pack-") as name:
        work = Path(name)
        parts = ["server", "packages", "grpc"]
        if with_python:
            copy_running_python(work / "python", python)
            parts.append("python")
        download(work / "wheels", python)
        unpack(work / "wheels", work, python)
        counts = {}
        for part in parts:
            archive = work / f"{part}.tar.xz"
            write_archive(work / part, archive, compression)
            counts[archive] = check_archive(archive, part, python)
        return {archive.replace(out / archive.name): count for archive, count in counts.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the archives")
    parser.add_argument("--python", choices=PYTHONS, default="3.12", help="Python of the target (default: 3.12)")
    parser.add_argument("--with-libpython", action="store_true", help="also pack the running Python: python.tar.xz")
    options = parser.parse_args()
    try:
        archives = pack(options.out, options.python, with_python=options.with_libpython)
    except (CannotPack, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for archive, files in archives.items():
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
        print(f"{archive}: {archive.stat().st_size / 1e6:.1f} MB, {files} files, SHA-256 {digest}")
    return 0


if __name__ == "__main__":
    stop_on_signals()  # so that the temporary folder goes
    sys.exit(main())
