"""Log and trace settings on the wire, in Triton's words."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conch.config.server import LogOptions, TraceOptions
from conch.observe.trace import TraceSetting
from conch.pb import grpc_service_pb2 as pb
from conch.protocol.v2 import settings
from conch.types.error import Code, InferError

LOG = {
    "{}": {}, "[]": {}, '{"foo": 1}': {}, '{"log_file": null, "log_info": null}': {},
    '{"log_info": false, "log_warning": true, "log_error": false}': {"info": False, "warning": True, "error": False},
    '{"log_verbose_level": 3}': {"verbose": 3}, '{"log_format": "ISO8601"}': {"format": "ISO8601"},
}  # fmt: skip
BAD_LOG = {
    "": (Code.INTERNAL, "failed to parse the request JSON buffer: The document is empty. at 0"),
    "x": (Code.INTERNAL, "failed to parse the request JSON buffer: Invalid value. at 0"),
    '{"log_file": "x"}': (Code.UNSUPPORTED, "log file location can not be updated through network protocol"),
    '{"log_file": 5}': (Code.UNSUPPORTED, "log file location can not be updated through network protocol"),
    '{"log_info": 1}': (Code.INTERNAL, "attempt to access JSON non-boolean as boolean"),
    '{"log_error": "true"}': (Code.INTERNAL, "attempt to access JSON non-boolean as boolean"),
    '{"log_verbose_level": "1"}': (
        Code.INTERNAL, "attempt to access JSON non-unsigned-integer as unsigned-integer"
    ),
    '{"log_verbose_level": -1}': (Code.INTERNAL, "attempt to access JSON non-unsigned-integer as unsigned-integer"),
    '{"log_verbose_level": true}': (Code.INTERNAL, "attempt to access JSON non-unsigned-integer as unsigned-integer"),
    '{"log_verbose_level": 99999999999}': (
        Code.INTERNAL, "attempt to access JSON non-unsigned-integer as unsigned-integer"
    ),
    '{"log_format": 5}': (Code.INTERNAL, "attempt to access JSON non-string as string"),
    '{"log_format": "iso8601"}': (Code.UNAVAILABLE, "invalid argument for --log_format, got: iso8601"),
}  # fmt: skip


@pytest.mark.parametrize(("body", "changes"), LOG.items())
def test_log_changes_are_read(body: str, changes: dict[str, Any]) -> None:
    """What is named and not null changes; what nobody knows is left out."""
    assert settings.read_log(body.encode()) == changes


@pytest.mark.parametrize(("body", "refusal"), BAD_LOG.items())
def test_bad_log_changes_are_refused(body: str, refusal: tuple[Code, str]) -> None:
    """Wrong types and values have Triton's code and words."""
    with pytest.raises(InferError) as caught:
        settings.read_log(body.encode())
    assert (caught.value.code, caught.value.message) == refusal


def log_message(**values: Any) -> pb.LogSettingsRequest:
    message = pb.LogSettingsRequest()
    for name, value in values.items():
        kinds: dict[type, str] = {bool: "bool_param", int: "uint32_param", str: "string_param"}
        setattr(message.settings[name], kinds[type(value)], value)
    return message


BAD_LOG_CALLS = [
    ({"log_file": "x"}, Code.UNSUPPORTED, "log file location can not be updated through network protocol"),
    ({"log_info": 1}, Code.INVALID_ARG, "expect boolean for 'log_info'"),
    ({"log_warning": "x"}, Code.INVALID_ARG, "expect boolean for 'log_warning'"),
    ({"log_verbose_level": True}, Code.INVALID_ARG, "expect int32 for 'log_verbose_level'"),
    ({"log_format": True}, Code.INVALID_ARG, "expect string for 'log_format'"),
    ({"log_format": "x"}, Code.INVALID_ARG, "invalid argument for log_format, got: x"),
]


@pytest.mark.parametrize(("values", "code", "text"), BAD_LOG_CALLS)
def test_bad_log_calls_are_refused(values: dict[str, Any], code: Code, text: str) -> None:
    """gRPC has words of its own."""
    with pytest.raises(InferError) as caught:
        settings.read_log_message(log_message(**values))
    assert (caught.value.code, caught.value.message) == (code, text)


def test_log_calls_are_read_and_answered() -> None:
    """What a call sets is what the answer tells."""
    message = log_message(log_info=False, log_verbose_level=2, log_format="ISO8601", foo=1)
    changes = settings.read_log_message(message)
    assert changes == {"info": False, "verbose": 2, "format": "ISO8601"}
    answer = settings.write_log_message(LogOptions(**changes))
    assert answer.settings["log_info"].WhichOneof("parameter_choice") == "bool_param"
    assert answer.settings["log_verbose_level"].uint32_param == 2
    assert answer.settings["log_file"].WhichOneof("parameter_choice") == "string_param"
    assert sorted(answer.settings) == [
        "log_error", "log_file", "log_format", "log_info", "log_verbose_level", "log_warning"
    ]  # fmt: skip


def test_log_settings_as_json() -> None:
    """The keys are in Triton's order."""
    assert settings.write_log(LogOptions(file="f")) == (
        b'{"log_file":"f","log_info":true,"log_warning":true,"log_error":true,"log_verbose_level":0,'
        b'"log_format":"default"}'
    )


FIXED = "trace file location can not be updated through network protocol"
TRACE = {
    "{}": {}, "[]": {}, '{"foo": 1, "trace_mode": "opentelemetry"}': {}, '{"trace_level": []}': {},
    '{"trace_level": ["FOO"]}': {}, '{"trace_level": ["TENSORS", "FOO", "TIMESTAMPS"]}':
    {"level": ("TIMESTAMPS", "TENSORS")}, '{"trace_level": ["OFF"]}': {"level": ()}, '{"trace_level": null}':
    {"level": None}, '{"trace_rate": "7", "trace_count": "-1", "log_frequency": "3"}':
    {"rate": 7, "count": -1, "log_frequency": 3}, '{"trace_rate": null, "trace_count": null, "log_frequency": null}':
    {"rate": None, "count": None, "log_frequency": None}, '{"trace_rate": " 5"}': {"rate": 5},
}  # fmt: skip
BAD_TRACE = {
    "": (Code.INTERNAL, "failed to parse the request JSON buffer: The document is empty. at 0"),
    '{"trace_file": "x"}': (Code.UNSUPPORTED, FIXED),
    '{"trace_file": null}': (Code.UNSUPPORTED, FIXED),
    '{"trace_level": ["OFF", "TIMESTAMPS"]}': (Code.INVALID_ARG, "Expect only one trace level 'OFF' is specified"),
    '{"trace_level": "OFF"}': (Code.INTERNAL, "attempt to access JSON non-array as array"),
    '{"trace_level": [1]}': (Code.INTERNAL, "attempt to access JSON non-string as string"),
    '{"trace_rate": 5}': (Code.INTERNAL, "attempt to access JSON non-string as string"),
    '{"trace_rate": "x"}': (Code.INVALID_ARG, "Unable to parse 'trace_rate', got: x"),
    '{"trace_rate": "5x"}': (Code.INVALID_ARG, "Unable to parse 'trace_rate', got: 5x"),
    '{"trace_rate": "-1"}': (Code.INVALID_ARG, "Unable to parse 'trace_rate', got: -1"),
    '{"trace_rate": "99999999999"}': (
        Code.INVALID_ARG, "Unable to parse 'trace_rate', value is out of range [ 0, 4294967295 ], got: 99999999999"
    ),
    '{"trace_count": "x"}': (Code.INVALID_ARG, "Unable to parse 'trace_count', got: x"),
    '{"trace_count": "-2"}': (Code.INVALID_ARG, "Unable to parse 'trace_count'. Expecting value >= -1, got:-2"),
    '{"log_frequency": "x"}': (Code.INVALID_ARG, "Unable to parse 'log_frequency', got: x"),
}  # fmt: skip


@pytest.mark.parametrize(("body", "changes"), TRACE.items())
def test_trace_changes_are_read(body: str, changes: dict[str, Any]) -> None:
    """null clears, levels that nobody knows are left out."""
    assert settings.read_trace(body.encode()) == changes


@pytest.mark.parametrize(("body", "refusal"), BAD_TRACE.items())
def test_bad_trace_changes_are_refused(body: str, refusal: tuple[Code, str]) -> None:
    """Wrong types and values have Triton's code and words."""
    with pytest.raises(InferError) as caught:
        settings.read_trace(body.encode())
    assert (caught.value.code, caught.value.message) == refusal


def trace_message(**values: list[str]) -> pb.TraceSettingRequest:
    message = pb.TraceSettingRequest()
    for name, value in values.items():
        message.settings[name].value.extend(value)
    return message


def test_trace_calls_are_read() -> None:
    """A key without a value clears."""
    message = trace_message(trace_level=["TIMESTAMPS"], trace_rate=["5"], trace_count=[], foo=["x"])
    assert settings.read_trace_message(message) == {"level": ("TIMESTAMPS",), "rate": 5, "count": None}
    assert settings.read_trace_message(trace_message(trace_level=[])) == {"level": None}


BAD_TRACE_CALLS = [
    ({"trace_rate": ["1", "2"]}, "expect only 1 value for 'trace_rate'"),
    ({"trace_count": ["-2"]}, "Unable to parse 'trace_count'. Expecting value >= -1, got: -2"),
    ({"log_frequency": ["x"]}, "Unable to parse 'log_frequency', got: x"),
    ({"trace_level": ["TENSORS", "OFF"]}, "Expect only one trace level 'OFF' is specified"),
    ({"trace_file": ["x"]}, FIXED),
]


@pytest.mark.parametrize(("values", "text"), BAD_TRACE_CALLS)
def test_bad_trace_calls_are_refused(values: dict[str, list[str]], text: str) -> None:
    """Triton's words, with the blank that its gRPC has and its HTTP has not."""
    with pytest.raises(InferError) as caught:
        settings.read_trace_message(trace_message(**values))
    assert caught.value.message == text


def setting(options: TraceOptions) -> TraceSetting:
    return TraceSetting(options.level, options.rate, options.count, options.log_frequency, options)


def test_trace_settings_are_told() -> None:
    """All texts but the levels; OFF when there are none."""
    answer = settings.write_trace(setting(TraceOptions(level=("TIMESTAMPS", "TENSORS"), file="f", rate=1)))
    assert answer == (
        b'{"trace_level":["TIMESTAMPS","TENSORS"],"trace_rate":"1","trace_count":"-1","log_frequency":"0",'
        b'"trace_file":"f","trace_mode":"triton"}'
    )
    message = settings.write_trace_message(setting(TraceOptions()))
    assert {key: list(value.value) for key, value in message.settings.items()} == {
        "trace_level": ["OFF"], "trace_rate": ["1000"], "trace_count": ["-1"], "log_frequency": ["0"],
        "trace_file": [""], "trace_mode": ["triton"],
    }  # fmt: skip


def test_opentelemetry_settings_are_told() -> None:
    """In that mode there is no file, and its own options are there."""
    options = TraceOptions(mode="opentelemetry", url="http://c", resource={"service.name": "x"}, level=("TIMESTAMPS",))
    answer = json.loads(settings.write_trace(setting(options)))
    assert answer["trace_mode"] == "opentelemetry"
    assert answer["url"] == "http://c"
    assert answer["resource"] == "service.name=x"
    assert answer["bsp_max_queue_size"] == "2048"
    assert not {"trace_file", "log_frequency"} & answer.keys()


@given(st.binary(max_size=60) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["trace_level", "trace_rate", "trace_count", "log_frequency", "log_info", "log_format",
                         "log_verbose_level", "log_file", "trace_file", "x"]), inner, max_size=4),
    max_leaves=8,
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_no_body_breaks_the_reader(body: bytes) -> None:
    """Whatever comes, it is read or refused."""
    for read in (settings.read_log, settings.read_trace):
        with suppress(InferError):
            read(body)
