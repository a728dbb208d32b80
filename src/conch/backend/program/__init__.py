"""Models that are functions of the program which the server is a part of: they run in its own process."""

from conch.backend.program.api import AsyncCopy, Copy, Program
from conch.backend.program.backend import BACKEND, ProgramBackend
from conch.backend.program.call import Call

__all__ = ["BACKEND", "AsyncCopy", "Call", "Copy", "Program", "ProgramBackend"]
