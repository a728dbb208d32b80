"""Entries as bytes: what was written comes back, what is damaged or forged is nothing."""

from __future__ import annotations

import hashlib
import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conch.cache.api import Entry
from conch.cache.encoding import decode, encode
from conch.types.dtype import ALL, BYTES, FP32
from conch.types.response import InferResponse
from conch.types.tensor import Tensor, join_bytes

parameters = st.one_of(
    st.none(),
    st.dictionaries(
        st.text(),
        st.one_of(st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False), st.text()),
        min_size=1,
    ),
)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    kind = draw(st.sampled_from(ALL))
    shape = tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
    count = 1
    for size in shape:
        count *= size
    if kind is BYTES:
        data = join_bytes(draw(st.lists(st.binary(max_size=5), min_size=count, max_size=count)))
    else:
        data = draw(st.binary(min_size=count * kind.size, max_size=count * kind.size))
    return Tensor(draw(st.text()), kind, shape, data)


entries = st.builds(lambda t, p: Entry(InferResponse(t, p)), st.lists(tensors(), max_size=3), parameters)


def plain(entry: Entry) -> object:
    outputs = [(each.name, each.datatype, each.shape, each.data) for each in entry.response.outputs]
    return outputs, entry.response.parameters, entry.size


@given(entries)
def test_what_was_written_comes_back(entry: Entry) -> None:
    """Names, types, shapes, contents and parameters."""
    back = decode(encode(entry))
    assert back is not None
    assert plain(back) == plain(entry)


@given(entries, st.data())
def test_damage_is_noticed(entry: Entry, data: st.DataObject) -> None:
    """Any byte that is another, any that is missing, any that is added makes it nothing."""
    whole = encode(entry)
    at = data.draw(st.integers(0, len(whole) - 1))
    other = whole[at] ^ data.draw(st.integers(1, 255))
    assert decode(whole[:at] + bytes([other]) + whole[at + 1 :]) is None
    assert decode(whole[:at]) is None
    assert decode(whole + b"x") is None


@given(st.binary())
def test_garbage_is_nothing(garbage: bytes) -> None:
    """Whatever somebody else has put there."""
    assert decode(garbage) is None


def forged(head: Any, contents: bytes = b"") -> bytes:
    """As `encode` makes it, with a digest that is right."""
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    rest = struct.pack("<I", len(text)) + text + contents
    return b"conch-entry-1\n" + hashlib.blake2b(rest, digest_size=16).digest() + rest


@pytest.mark.parametrize(
    "data",
    [
        forged(b"{"),
        forged([]),
        forged({"outputs": 3, "parameters": None}),
        forged({"outputs": []}),
        forged({"outputs": [["Y", "FP32", [1], 4]], "parameters": None}),
        forged({"outputs": [["Y", "FP32", [2], 4]], "parameters": None}, bytes(4)),
        forged({"outputs": [["Y", "FP32", [-1], -4]], "parameters": None}, bytes(4)),
        forged({"outputs": [["Y", "FP32", [True], 4]], "parameters": None}, bytes(4)),
        forged({"outputs": [["Y", "FP32", [1.0], 4]], "parameters": None}, bytes(4)),
        forged({"outputs": [["Y", "FP9", [1], 4]], "parameters": None}, bytes(4)),
        forged({"outputs": [["Y", [], [1], 4]], "parameters": None}, bytes(4)),
        forged({"outputs": [[7, "FP32", [1], 4]], "parameters": None}, bytes(4)),
        forged({"outputs": [["Y", "BYTES", [1], 4]], "parameters": None}, b"\xff\xff\xff\xff"),
        forged({"outputs": [["Y", "BYTES", [2], 4]], "parameters": None}, bytes(4)),
        forged({"outputs": [["Y", "FP32", [1], 4]], "parameters": None}, bytes(5)),
        forged({"outputs": [], "parameters": [1]}),
        forged({"outputs": [], "parameters": {"a": {}}}),
        forged({"outputs": [], "parameters": {"a": None}}),
        forged({"outputs": [["Y", "FP32", [0, 2**63], 0]], "parameters": None}),
        forged({"outputs": [["\ud800", "FP32", [1], 4]], "parameters": None}, bytes(4)),
        forged({"outputs": [], "parameters": {"a": 2**64}}),
        forged({"outputs": [], "parameters": {"a": "\ud800"}}),
        forged({"outputs": [], "parameters": {"\ud800": 1}}),
        forged(b"[" * 100_000),
        forged(b"\xff"),
        b"conch-entry-1\n" + hashlib.blake2b(b"", digest_size=16).digest(),
    ],
)
def test_what_does_not_fit_is_nothing(data: bytes) -> None:
    """A right digest is no proof: contents that do not fit their head are refused, never raised about."""
    assert decode(data) is None


def test_the_format_is_fixed() -> None:
    """Servers of the next version read what this one has written, or the version's mark changes."""
    entry = Entry(InferResponse([Tensor("Y", FP32, (1,), b"\0\0\x80?")]))
    assert encode(entry) == forged(b'{"outputs": [["Y", "FP32", [1], 4]], "parameters": null}', b"\0\0\x80?")
