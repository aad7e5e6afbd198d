"""Starts a Triton server on the model repository: finds the binary, checks first, launches, drains."""

from server.errors import CannotStart
from server.launch import TritonServer
from server.options import ServerOptions, TlsFiles

__all__ = ["CannotStart", "ServerOptions", "TlsFiles", "TritonServer"]
