"""The environment of a Python that this one starts."""

from __future__ import annotations

import os

from loadtest.options import ROOT


def child_environment() -> dict[str, str]:
    """This process's own, in which `loadtest` is found from any folder."""
    path = os.pathsep.join(filter(None, [str(ROOT), str(ROOT / "client"), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path}
