"""Which requests ask the same: a digest of everything that a model's answer may depend on. Pure.

Triton's key is 64 bits over the model's name, its version and the inputs' names and bytes. Here it is 128 bits of a
cryptographic hash (BLAKE3: 600 kB take 0.17 ms, a tenth of BLAKE2's time), over the shapes, the outputs asked for, the
parameters and the loaded files too: a client can neither meet nor make two requests that share a key and differ in
their answers.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final

from blake3 import blake3

from conch.types.model import ModelSpec
from conch.types.request import InferRequest, Parameter, RequestForm

_KEY_BYTES: Final = 16
_MEMO: Final = "cache"


class Keys:
    """Makes the keys of the requests to one loaded version.

    `identity` differs between two versions of one name and number that may answer differently (other files, another
    config), and is the same for two that cannot. `by_generation`: when any model comes or goes, the keys are others.
    """

    def __init__(self, spec: ModelSpec, identity: bytes, *, by_generation: bool = False) -> None:
        self._spec = spec
        self._identity = identity
        self._by_generation = by_generation

    def of(self, request: InferRequest) -> bytes:
        """The part that depends on the form is hashed once per form, the tensors' bytes once per request."""
        form = request.form
        begun = form.memo.get(_MEMO)
        if begun is None:
            begun = form.memo[_MEMO] = blake3(self._head(form))
        digest = begun.copy()
        data = request.data
        if form.has_bytes:
            # The others' sizes follow from their shapes.
            digest.update(struct.pack(f"<{len(data)}Q", *[len(each) for each in data]))
        for each in data:
            digest.update(each)
        return digest.digest(_KEY_BYTES)

    def _head(self, form: RequestForm) -> bytes:
        spec = self._spec
        inputs = [
            join((_text(spec.inputs[at].name), _text(spec.inputs[at].datatype.name), struct.pack(f"<{len(s)}q", *s)))
            for at, s in zip(form.inputs, form.shapes, strict=True)
        ]
        # In whatever order they are asked for, the model gives them in its own; all is what nobody has to say.
        names = {each.name for each in spec.outputs}
        wanted = names if form.outputs is None else set(form.outputs)
        outputs = b"" if wanted == names else b"\1" + join(map(_text, sorted(wanted)))
        # What steers the server (priority, timeout, id) does not change the answer; a sequence's id and flags reach
        # the model, sequence model or not.
        parameters = [join((_text(name), _value(value))) for name, value in sorted((form.parameters or {}).items())]
        return join(
            (
                self._identity,
                _text(spec.name),
                b"%d" % form.version,
                b"%d" % (form.generation if self._by_generation else 0),
                join(inputs),
                outputs,
                join(parameters),
                _value(form.correlation_id),
                b"%d" % form.flags,
            )
        )


def join(parts: Iterable[bytes]) -> bytes:
    """Different lists of parts never give the same bytes, and none gives the beginning of another's."""
    listed = list(parts)
    return b"".join([struct.pack("<Q", len(listed)), *[struct.pack("<Q", len(part)) + part for part in listed]])


def _text(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _value(value: Parameter) -> bytes:
    """True, 1, 1.0 and "1" are four values."""
    if isinstance(value, bool):
        return b"b1" if value else b"b0"
    if isinstance(value, int):
        return b"i%d" % value
    if isinstance(value, float):
        return b"f" + struct.pack("<d", value)
    return b"s" + _text(value)
