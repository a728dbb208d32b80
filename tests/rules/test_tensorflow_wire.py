"""Whatever bytes a TensorFlow file holds, reading it ends, with what they say or with a refusal."""

from __future__ import annotations

from contextlib import suppress

from hypothesis import given
from hypothesis import strategies as st

from conch.backend.tensorflow import wire
from conch.backend.tensorflow.model_file import _graph_def, _meta_graph
from support import tensorflow_models as tf

CONTENT = st.lists(st.tuples(st.integers(1, 1000), st.one_of(st.integers(0, (1 << 64) - 1), st.binary(max_size=20))))


@given(CONTENT)
def test_fields_are_read_as_written(content: list[tuple[int, int | bytes]]) -> None:
    """Numbers and contents come back in order."""
    raw = b"".join([tf.number(n, v) if isinstance(v, int) else tf.block(n, v) for n, v in content])
    found = [(n, v if isinstance(v, int) else bytes(v)) for n, v in wire.fields(memoryview(raw))]
    assert found == content


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    """Nothing but a WireError comes out."""
    for read in (_graph_def, _meta_graph):
        with suppress(wire.WireError):
            read(memoryview(raw))


@given(st.integers(0, 10_000), st.integers(0, 255))
def test_a_flipped_byte_is_read_or_refused(place: int, byte: int) -> None:
    """Of a file that was whole."""
    signature = tf.signature({"x": tf.info("in:0", 1, [-1, 4])}, {"y": tf.info("out:0", 9, None)})
    raw = bytearray(tf.graph(["serve"], {"serving_default": signature}))
    raw[place % len(raw)] = byte
    with suppress(wire.WireError):
        _meta_graph(memoryview(bytes(raw)))


@given(st.integers(-(1 << 63), (1 << 63) - 1))
def test_signed_numbers(value: int) -> None:
    """A negative dimension is ten bytes on the wire."""
    assert wire.signed(wire.whole(memoryview(tf.number(1, value)), 1)) == value
