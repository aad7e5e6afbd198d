"""A virtual environment for Triton's Python stubs, so that models import this project and the packages installed here.

The stub embeds Python in isolated mode (seen in 24.10): it ignores PYTHONPATH and PYTHONHOME, takes the first `python3`
on PATH for its own program, and reads the `pyvenv.cfg` beside that. A wrong one there means another NumPy than the one
that was installed for serving, or none at all.
"""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

from server.backend import plain_path
from server.locate import carried_python
from server.options import ROOT


def assemble_python(folder: Path) -> Path:
    """Make ``folder/python`` a virtual environment of the running Python with the same packages and this repository.

    Its standard library is that of the shared library which the stub links (`carried_python`).

    Returns:
        Its ``bin`` folder, to be put first on PATH.
    """
    home = folder / "python"
    base = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    carried = carried_python()
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    if carried is not None:
        base = carried / "bin" / f"python{version}"
    packages = home / "lib" / f"python{version}" / "site-packages"
    packages.mkdir(parents=True)
    programs = plain_path(base.parent.parent, home / "base") / base.parent.name
    (home / "pyvenv.cfg").write_text(f"home = {programs}\ninclude-system-site-packages = false\n")
    paths = [plain_path(path, home / str(number)) for number, path in enumerate([ROOT, *installed_packages()])]
    (packages / "serving.pth").write_text("".join(f"{path}\n" for path in paths))
    (home / "bin").mkdir()
    (home / "bin" / "python3").symlink_to(base)
    return home / "bin"


def installed_packages() -> list[Path]:
    """The entries of this interpreter's path that are not its standard library."""
    standard = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")}
    return [
        Path(entry)
        for entry in sys.path
        if Path(entry).is_dir()
        and Path(entry).is_absolute()
        and Path(entry).resolve() not in standard
        and Path(entry).name != "lib-dynload"
    ]
