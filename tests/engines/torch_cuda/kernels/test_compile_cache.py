"""Where compiled kernels may be kept: not where no program may be loaded from, as in a container's /tmp by default."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vita_audio.engines.torch_cuda.kernels import compile_cache
from vita_audio.machine import ROOT

_ASK = "from vita_audio.engines.torch_cuda.kernels.compile_cache import make_writable; print(make_writable())"


@pytest.mark.parametrize(("mounted", "usable"), [("noexec", "False"), ("exec", "True")])
def test_a_folder_from_which_nothing_may_run(mounted: str, usable: str, tmp_path: Path) -> None:
    mount = f'mount -t tmpfs -o size=1m,{mounted} none "$1" || exit 77'
    script = f'{mount}; TMPDIR="$1" {compile_cache.VARIABLE}="$1/c" "$2" -c "$3"'
    command = [
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
        "bash",
        "-c",
        script,
        "-",
        str(tmp_path),
        sys.executable,
    ]
    try:
        done = subprocess.run([*command, _ASK], cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("needs unshare")
    if done.returncode == 77 or "unshare:" in done.stderr:
        pytest.skip(f"no mount namespace here: {done.stderr.strip()}")
    assert done.stdout.strip() == usable, done.stderr
    assert ("cannot be used (Operation not permitted)" in done.stderr) == (usable == "False")
