"""How routes are written: in a config, in a file, over HTTP; and what is said to who writes them wrongly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conch.config.route import Arm, Shadow, Sticky, Target, TrafficRoute, write_route
from conch.config.rules import validate
from conch.config.traffic import MAX_ARMS, read_file, read_route, traffic_of
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.difference import Tolerance
from conch.types.error import Code, InferError

WHOLE = """{
  "arms": [{"version": 1, "weight": 90}, {"model": "next", "version": "2", "weight": 0.5}, {"weight": 0}],
  "sticky": {"by": "header:X-User"},
  "shadow": {"version": 3, "fraction": 0.1, "max_in_flight": 4, "compare": {"relative_tolerance": 0.01}}
}"""


def read(text: str | bytes) -> TrafficRoute:
    return read_route(text, "m", "traffic route of 'm'")


def refusal(text: str | bytes) -> str:
    with pytest.raises(InferError) as caught:
        read(text)
    assert caught.value.code is Code.INVALID_ARG
    assert caught.value.hint
    return caught.value.message.removeprefix("traffic route of 'm'")


def make_config(text: str) -> ModelConfig:
    config = ModelConfig(name="m", backend="identity")
    config.parameters["conch_traffic"].string_value = text
    return config


def test_everything_that_a_route_may_say() -> None:
    """Models and versions may be left out, versions be text, one object stand for a list of one."""
    assert read(WHOLE) == TrafficRoute(
        (Arm(Target("m", 1), 90), Arm(Target("next", 2), 0.5), Arm(Target("m"), 0)),
        Sticky("parameter", "x-user", header=True),
        (Shadow(Target("m", 3), 0.1, Tolerance(0.01, 1e-6), 4),),
    )


def test_a_route_that_says_nothing() -> None:
    """All requests go to the latest version, as without a route."""
    assert read("{}") == TrafficRoute((Arm(Target("m"), 1),))
    assert read('{"sticky": null}') == read("{}")


@pytest.mark.parametrize("text", [WHOLE, "{}", '{"sticky": "sequence"}', '{"sticky": "parameter: a:b"}'])
def test_what_is_written_reads_as_itself(text: str) -> None:
    """The answer to a GET can be PUT."""
    route = read(text)
    assert read(json.dumps(write_route(route))) == route


NUMBER = "expected 0 or a number from 1e-06 to 1e+09"
BAD = {
    "": " is no JSON: Expecting value: line 1 column 1 (char 0)",
    "[]": ": it is [], expected an object",
    '{"arm": []}': ": it has the unknown member 'arm'",
    '{"arms": []}': ": arms is empty, expected an arm with a weight above 0",
    '{"arms": 3}': ": arms is 3, expected a list of objects",
    '{"arms": [1]}': ": arms[0] is 1, expected an object",
    '{"arms": {"weight": 0}}': ": arms has weight 0 alone, expected an arm with a weight above 0",
    '{"arms": [{}, {"weight": -1}]}': f": arms[1].weight is -1, {NUMBER}",
    '{"arms": [{"weight": "9"}]}': f": arms[0].weight is '9', {NUMBER}",
    '{"arms": [{"weight": true}]}': f": arms[0].weight is True, {NUMBER}",
    '{"arms": [{"weight": 1e-9}]}': f": arms[0].weight is 1e-09, {NUMBER}",
    '{"arms": [{"weight": 1e999}]}': f": arms[0].weight is inf, {NUMBER}",
    '{"arms": [{"weight": NaN}]}': " is no JSON: NaN is no number of JSON",
    '{"arms": [{"version": 1.5}]}': ": arms[0].version is 1.5, expected a version's number or 'latest'",
    '{"arms": [{"version": -2}]}': ": arms[0].version is -2, expected a version's number or 'latest'",
    '{"arms": [{"version": "v1"}]}': ": arms[0].version is 'v1', expected a version's number or 'latest'",
    '{"arms": [{"model": ""}]}': ": arms[0].model is '', expected a model's name",
    '{"arms": [{"version": 1}, {"model": "m", "version": "1"}]}': ": arms names m:1 twice",
    '{"arms": [], "arms": [{}]}': " says 'arms' twice",
    '{"sticky": "user"}': ": sticky is 'user', expected 'header:<name>', 'parameter:<name>'",
    '{"sticky": "header:"}': ": sticky is 'header:', expected 'header:<name>', 'parameter:<name>'",
    '{"sticky": {"by": 1}}': ": sticky.by is 1, expected 'header:<name>'",
    '{"shadow": [{"fraction": 1.1}]}': ": shadow[0].fraction is 1.1, expected 0 or a number from 1e-06 to 1",
    '{"shadow": {"max_in_flight": 0}}': ": shadow.max_in_flight is 0, expected a whole number from 1 to 100000",
    '{"shadow": {"compare": {"absolute_tolerance": -1}}}': ": shadow.compare.absolute_tolerance is -1, expected",
    '{"shadow": {"compare": []}}': ": shadow.compare is [], expected an object",
    '{"shadow": {"weight": 1}}': ": shadow has the unknown member 'weight'",
    "[" * 100_000: " is no JSON: it is nested too deeply",
    json.dumps({"arms": [{"version": n} for n in range(MAX_ARMS + 1)]}): f": arms has {MAX_ARMS + 1} members",
    " " * (1 << 20) + "{}": " has 1048578 bytes, expected at most 1048576",
}


@pytest.mark.parametrize("text", BAD, ids=range(len(BAD)))
def test_errors_name_the_field(text: str) -> None:
    """What came and what was expected, and a hint how to write it."""
    assert refusal(text).startswith(BAD[text])


@given(st.one_of(st.binary(max_size=200), st.text(max_size=200)))
def test_no_text_breaks_the_reader(text: bytes | str) -> None:
    """Whatever comes is a route or refused."""
    try:
        read(text)
    except InferError as error:
        assert error.code is Code.INVALID_ARG  # noqa: PT017


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.just({"weight": 1})),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["arms", "sticky", "shadow", "version", "weight", "compare"]), inner),
    ),
    max_leaves=12,
)


@given(JSON)
def test_no_json_breaks_the_reader(value: object) -> None:
    """Any value anywhere is a route that reads as itself, or refused."""
    try:
        route = read(json.dumps(value))
    except InferError:
        return
    assert read(json.dumps(write_route(route))) == route


def test_a_config_may_say_it() -> None:
    """It is a rule of configs: a model with a wrong route is not loaded."""
    assert traffic_of(make_config('{"arms": [{"version": 1}]}')) == TrafficRoute((Arm(Target("m", 1)),))
    assert traffic_of(ModelConfig(name="m")) is None
    with pytest.raises(InferError) as caught:
        validate(make_config('{"arms": [{"weight": "much"}]}'), check_io=False)
    assert caught.value.message.startswith("parameter 'conch_traffic' of model 'm': arms[0].weight is 'much', expected")


def test_a_file_has_routes_by_name(tmp_path: Path) -> None:
    """Names may be those of models or of none: an alias."""
    path = tmp_path / "traffic.json"
    path.write_text('{"alias": {"arms": [{"model": "m", "version": 2}]}, "m": {}}')
    assert read_file(path) == {"alias": TrafficRoute((Arm(Target("m", 2)),)), "m": TrafficRoute((Arm(Target("m")),))}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", ": it is [], expected routes by name"),
        ('{"a": {"arms": [{"weight": -1}]}}', ": a.arms[0].weight is -1, expected 0 or"),
        ('{"a/b": {}}', ": it names 'a/b', expected the name of a model or of an alias"),
        ('{"a": {}, "a": {}}', " says 'a' twice"),
        ("{", " is no JSON: Expecting property name"),
        (None, " cannot be read: No such file or directory"),
    ],
)
def test_errors_name_the_file(text: str | None, said: str, tmp_path: Path) -> None:
    """And the route in it, where it is one route that is wrong."""
    path = tmp_path / "traffic.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InferError) as caught:
        read_file(path)
    assert caught.value.message.startswith(f"--traffic-config={path}{said}")
