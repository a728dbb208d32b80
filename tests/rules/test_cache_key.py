"""Two requests share a key exactly when a model cannot tell them apart."""

from __future__ import annotations

import dataclasses
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from conch.cache.key import Keys, join
from conch.types.dtype import BYTES, FP32, INT32
from conch.types.model import ModelSpec, TensorSpec
from support.requests import make_form, make_request

SPEC = ModelSpec(
    "m",
    1,
    8,
    (TensorSpec("A", FP32, (-1,)), TensorSpec("B", INT32, (-1,)), TensorSpec("C", BYTES, (-1,), optional=True)),
    (TensorSpec("Y", FP32, (-1,)), TensorSpec("Z", FP32, (-1,))),
)
KEYS = Keys(SPEC, b"identity")

words = st.text(max_size=4)
values = st.one_of(st.booleans(), st.integers(-3, 3), st.sampled_from([0.0, 1.0, -1.0, 2.5]), words)
contents = st.binary(max_size=6)


@dataclasses.dataclass(frozen=True)
class Asked:
    """All that may decide an answer."""

    shapes: tuple[tuple[int, ...], ...]
    data: tuple[bytes, ...]
    outputs: tuple[str, ...] | None
    parameters: tuple[tuple[str, Any], ...]
    correlation_id: int | str
    flags: int
    version: int

    def told_apart(self) -> object:
        """Equal for equal requests; Python's own equality takes True for 1."""
        return (
            self.shapes, self.data, {"Y", "Z"} if self.outputs is None else set(self.outputs),
            {name: (type(value), value) for name, value in self.parameters},
            type(self.correlation_id), self.correlation_id, self.flags, self.version,
        )  # fmt: skip


shapes = st.lists(st.integers(0, 3), min_size=0, max_size=3).map(tuple)
asked = st.builds(
    Asked,
    shapes=st.tuples(shapes, shapes, shapes),
    data=st.tuples(contents, contents, contents),
    outputs=st.one_of(st.none(), st.lists(st.sampled_from("YZ"), max_size=3).map(tuple)),
    parameters=st.dictionaries(words, values, max_size=3).map(lambda d: tuple(d.items())),
    correlation_id=st.one_of(st.integers(0, 2), words),
    flags=st.integers(0, 3),
    version=st.integers(1, 2),
)


def key(of: Asked, keys: Keys = KEYS, id: str = "", **changes: Any) -> bytes:
    form = make_form(
        inputs=(0, 1, 2),
        order=(0, 1, 2),
        shapes=of.shapes,
        outputs=of.outputs,
        parameters=dict(of.parameters) or None,
        correlation_id=of.correlation_id,
        flags=of.flags,
        version=of.version,
        has_bytes=True,
        **changes,
    )
    return keys.of(make_request(form, id, data=of.data))


@given(asked, asked)
def test_keys_are_equal_when_requests_are(one: Asked, other: Asked) -> None:
    """No shift of bytes, names or values between the parts of a request makes it share another's key."""
    assert (key(one) == key(other)) == (one.told_apart() == other.told_apart())


@given(asked, st.data())
def test_bytes_that_move_to_the_next_input_make_another_key(one: Asked, data: st.DataObject) -> None:
    """The boundaries between inputs belong to the key."""
    first, second, third = one.data
    joined = first + second
    cut = data.draw(st.integers(0, len(joined)))
    moved = dataclasses.replace(one, data=(joined[:cut], joined[cut:], third))
    assert (key(one) == key(moved)) == (one.data == moved.data)


@given(asked)
def test_what_steers_the_server_is_no_part_of_the_key(one: Asked) -> None:
    """The id, the priority and the time-out do not change what a model answers."""
    assert key(one) == key(one, id="7", priority=3, timeout_us=9, generation=5)


def test_loaded_files_are_part_of_the_key() -> None:
    """A version loaded from other files, and a model of another name, has keys of its own."""
    request = make_request()
    renamed = dataclasses.replace(SPEC, name="n")
    retyped = dataclasses.replace(SPEC, inputs=(TensorSpec("A", INT32, (-1,)), *SPEC.inputs[1:]))
    made = {
        Keys(spec, identity).of(make_request(make_form()))
        for spec, identity in ((SPEC, b"a"), (SPEC, b"b"), (renamed, b"a"), (retyped, b"a"))
    }
    assert len(made) == 4
    assert Keys(SPEC, b"a").of(request) in made


def test_ensembles_forget_when_any_model_changes() -> None:
    """With `by_generation`, keys hold for one generation of the registry."""
    keys = Keys(SPEC, b"a", by_generation=True)
    one, same, later = (keys.of(make_request(make_form(generation=n))) for n in (1, 1, 2))
    assert one == same != later


@given(st.lists(contents, max_size=4), st.lists(contents, max_size=4))
def test_join_is_injective(one: list[bytes], other: list[bytes]) -> None:
    """Different lists of parts never give the same bytes."""
    assert (join(one) == join(other)) == (one == other)
