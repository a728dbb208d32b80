"""The server as a library: `conch.Server` in a program of its user's, without ports unless they are asked for."""

from conch.library.answer import Answer
from conch.library.model import Model
from conch.library.server import Server

__all__ = ["Answer", "Model", "Server"]
