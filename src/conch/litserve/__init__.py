"""LitServe's names over this server: a program runs after `import litserve` is `import conch.litserve`."""

from conch.litserve.api import LitAPI
from conch.litserve.server import LitServer
from conch.litserve.web import HTTPException

__all__ = ["HTTPException", "LitAPI", "LitServer"]
