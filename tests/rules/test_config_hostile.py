"""Whatever is given as a config or a command line, the answer is a value or an error of ours."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from conch.config import flags
from conch.config.flag_table import FLAGS
from conch.config.instances import instance_groups
from conch.config.json import parse_json, to_json
from conch.config.normalize import normalize
from conch.config.pbtxt import format_text, parse_text
from conch.config.rules import validate
from conch.config.spec import model_spec
from conch.pb.model_config_pb2 import ModelConfig
from conch.pb.pool import POOL
from conch.types.error import InferError
from support.configs import TENSORS

CONFIG = POOL.FindMessageTypeByName("inference.ModelConfig")


def names(message: Any, found: set[str]) -> set[str]:
    for field in message.fields:
        found |= {field.name, field.json_name}
        if field.enum_type is not None:
            found |= set(field.enum_type.values_by_name)
        elif field.message_type is not None:
            names(field.message_type, found)
    return found


WORDS = st.sampled_from(sorted(names(CONFIG, set())))
MARKS = st.sampled_from([*"{}[]<>:,;#'\"\\ \n\t\x00", "true", "-1", "1e999", "nan", "0x7f", "99999999999999999999"])
SOUP = st.lists(st.one_of(WORDS, MARKS, st.text(max_size=8)), max_size=40).map(" ".join)


def field_value(field: Any) -> st.SearchStrategy[Any]:
    """Mostly what the field wants."""
    if field.message_type is not None:
        if field.message_type.GetOptions().map_entry:
            value = field_value(field.message_type.fields_by_name["value"])
            key = field_value(field.message_type.fields_by_name["key"]).map(str)
            return st.dictionaries(key, value, max_size=2)
        one = st.deferred(lambda: message_value(field.message_type))
    elif field.enum_type is not None:
        one = st.sampled_from([value.name for value in field.enum_type.values])
    elif field.cpp_type == field.CPPTYPE_STRING:
        one = st.sampled_from(["", "x", "y", "m", "python", "ensemble", "../a", "\u00e9"])
    elif field.cpp_type == field.CPPTYPE_BOOL:
        one = st.booleans()
    elif field.cpp_type in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        one = st.sampled_from([0, 0.5, 1, 1.5, "NaN", "-Infinity"])
    else:
        one = st.sampled_from([0, 1, 2, 4, -1, 2**31 - 1, 2**63 - 1])
    return st.lists(one, max_size=3) if field.is_repeated else one


def message_value(message: Any) -> st.SearchStrategy[dict[str, Any]]:
    fields = st.lists(st.sampled_from(list(message.fields)), max_size=4) if message.fields else st.just([])
    return fields.flatmap(lambda chosen: st.fixed_dictionaries({each.name: field_value(each) for each in chosen}))


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=12,
)


@given(SOUP)
def test_any_text_is_read_or_refused(text: str) -> None:
    """Text made of config words gives a config or an InferError."""
    with contextlib.suppress(InferError):
        parse_text(text, "a")


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    """Bytes give a config or an InferError, as text and as JSON."""
    with contextlib.suppress(InferError):
        parse_text(data, "a")
    with contextlib.suppress(InferError):
        parse_json(data)


@given(st.integers(0, len(TENSORS)), st.integers(0, 10), st.text(max_size=3))
def test_damaged_configs_are_read_or_refused(at: int, cut: int, put: str) -> None:
    """A sound config with a piece replaced gives a config or an InferError that names the text."""
    refused = ""
    try:
        parse_text(TENSORS[:at] + put + TENSORS[at + cut :], "a")
    except InferError as error:
        refused = error.message
    assert not refused or refused.startswith("failed to read text proto from a:")


@given(JUNK)
def test_any_json_is_read_or_refused(data: object) -> None:
    """Any JSON value gives a config or an InferError."""
    with contextlib.suppress(InferError):
        parse_json(json.dumps(data))


@given(st.sampled_from(['{"input":', "[", '{"a":', '{"parameters":{"a":', "input { ", "input [ ", "a { a: ["]))
def test_deep_nesting_is_refused(opening: str) -> None:
    """Nesting deeper than any config is an error, not a crash."""
    for read in (parse_json, lambda text: parse_text(text, "a")):
        with contextlib.suppress(InferError):
            read(opening * 50_000)  # type: ignore[operator]


@given(message_value(CONFIG))
def test_every_config_is_judged(data: dict[str, Any]) -> None:
    """Every config that can be read can be normalised, judged and printed, and what is printed reads back equal."""
    try:
        config = parse_json(json.dumps(data))
    except InferError:
        return
    assert parse_json(to_json(config)).SerializeToString(deterministic=True) == _bytes(config)
    assert _bytes(parse_text(format_text(config), "a")) == _bytes(config)
    normalize(config)
    once = _bytes(config)
    normalize(config)
    assert _bytes(config) == once
    with contextlib.suppress(InferError):
        validate(config, check_io=True)
        model_spec(config, 1)
        instance_groups(config, (0,), 2)


def _bytes(config: ModelConfig) -> bytes:
    return config.SerializeToString(deterministic=True)


FLAG = st.sampled_from([*FLAGS, "help", "", "h", "no-such"])
VALUE = st.one_of(
    st.sampled_from(["", "0", "-1", "65536", "1e5", "nan", "true", "a=b", "a,b=c", "a:b=c", "0:1", "*", "9" * 5000]),
    st.text(max_size=12),
)
ARGUMENT = st.one_of(
    st.tuples(FLAG, VALUE).map(lambda pair: f"--{pair[0]}={pair[1]}"),
    FLAG.flatmap(lambda name: st.integers(0, len(name)).map(lambda end: f"--{name[:end]}")),
    VALUE,
)


@given(st.lists(ARGUMENT, max_size=6), st.sampled_from(["tritonserver", "conch serve"]))
def test_any_command_line_is_read_or_refused(argv: list[str], prog: str) -> None:
    """Any argument list gives options, a FlagError or the help text."""
    with contextlib.suppress(flags.FlagError, flags.HelpAsked):
        options = flags.parse(argv, prog, {})
        assert 0 <= options.http.port <= 65535
        assert options.repository.paths
