"""The agent `checksum`: a model is loaded only when its files have the digests that its config names.

Its parameters are `<algorithm>:<path inside the model's folder>`, with the digest in hexadecimal digits as value. MD5
is Triton's; SHA256, SHA512 and BLAKE3 are ours.
"""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path
from typing import Any, Final, Protocol

from blake3 import blake3

from conch.repository.agent import Action, AgentModel
from conch.repository.override import inside
from conch.types.error import InferError, invalid, unsupported

_CHUNK: Final = 1 << 20


class _Digest(Protocol):
    def update(self, data: Any, /) -> object: ...
    def hexdigest(self) -> str: ...


def _make(algorithm: str) -> _Digest | None:
    match algorithm:
        case "MD5":
            # A check of Triton's: it finds damage, and keeps nobody from forging.
            return hashlib.md5(usedforsecurity=False)
        case "SHA256":
            return hashlib.sha256()
        case "SHA512":
            return hashlib.sha512()
        case "BLAKE3":
            return blake3()
    return None


class Checksum:
    def model_action(self, action: str, model: AgentModel) -> None:
        if action != Action.LOAD:
            return
        for key, expected in model.parameters.items():
            _check(model.directory, key, expected)


def _check(directory: Path, key: str, expected: str) -> None:
    """Raises InferError, with Triton's texts where it has them."""
    algorithm, colon, path = key.partition(":")
    if not colon:
        raise invalid(f"failed to parse key: {key}", "write <algorithm>:<path>, such as SHA256:1/model.onnx")
    digest = _make(algorithm.upper())
    if digest is None:
        raise unsupported(f"Unsupported checksum algorithm: {algorithm}", "known are MD5, SHA256, SHA512 and BLAKE3")
    try:
        place = directory / inside(path)
    except InferError:
        raise invalid(
            f"failed to open text file for read {path}: it is outside of the model's folder",
            "name files relative to the model's folder, such as 1/model.onnx",
        ) from None
    try:
        with place.open("rb", buffering=0) as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise invalid(f"failed to open text file for read {path}: {error.strerror}") from error
    found = digest.hexdigest()
    if not hmac.compare_digest(found.encode(), expected.strip().lower().encode()):
        raise invalid(
            f"Mismatched {algorithm.upper()} hash for file {path}, expect: {expected}, got: {found}",
            "the file is not the one that the config was written for",
        )
