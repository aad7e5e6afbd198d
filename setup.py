"""The server runs from its source tree, so only editable installs are built; everything else is in pyproject.toml."""

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel


class SourceTreeOnly(bdist_wheel):
    """Refuses a wheel: it would lack model_repository/ and put names such as `server` into site-packages."""

    def run(self) -> None:
        raise SystemExit(
            "the server runs from its source tree: use pip install --editable '.[serve]'; "
            "the client alone is pip install ./client"
        )


setup(cmdclass={"bdist_wheel": SourceTreeOnly})
