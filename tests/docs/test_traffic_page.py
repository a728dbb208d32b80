"""docs/traffic.md shows routes: they must be some, and what the page says of them must be so."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

from conch.config.normalize import normalize
from conch.config.pbtxt import parse_text
from conch.config.route import write_route
from conch.config.rules import validate
from conch.config.traffic import read_file, read_route, traffic_of
from conch.observe.traffic import OUTCOMES, RESULTS, RouteCounts, render
from conch.protocol.v2.restrict import route_category
from conch.protocol.v2.routes import Action, find

PAGE = (Path(__file__).parent.parent.parent / "docs" / "traffic.md").read_text()
BLOCKS = re.findall(r"```(?:json)?\n(.*?)```", PAGE, re.DOTALL)
CONFIG, WHOLE, FILE, COMMANDS = BLOCKS


def test_the_config_is_sound() -> None:
    """A reader who copies it gets a model that loads, with the route that the page speaks of."""
    config = parse_text('name: "m" backend: "python"\n' + CONFIG, "config.pbtxt")
    normalize(config)
    validate(config, check_io=False)
    route = traffic_of(config)
    assert route is not None
    assert [(arm.target.label, arm.weight) for arm in route.arms] == [("m:1", 90), ("m:2", 10)]
    assert route.sticky is not None
    assert route.sticky.text == "header:x-user"


def test_everything_is_everything() -> None:
    """The whole route says all that a route can say, and the defaults are those of the table."""
    route = write_route(read_route(WHOLE, "m", "the page"))
    assert json.loads(WHOLE) == {**route, "arms": [json.loads(WHOLE)["arms"][0], route["arms"][1]], "shadow": [
        {name: value for name, value in route["shadow"][0].items() if name != "model"}
    ]}  # fmt: skip
    bare = write_route(read_route('{"shadow": {}}', "m", "the page"))
    assert bare["arms"] == [{"model": "m", "version": "latest", "weight": 1}]
    assert bare["shadow"] == [{
        "model": "m", "version": "latest", "fraction": 1, "max_in_flight": 32,
        "compare": {"relative_tolerance": 1e-5, "absolute_tolerance": 1e-6},
    }]  # fmt: skip
    members = {*route, *route["arms"][0], *route["shadow"][0]}
    assert all(f"{name}`" in PAGE for name in members)


def test_the_file_can_be_read(tmp_path: Path) -> None:
    """With a route for an alias and one for a model."""
    path = tmp_path / "traffic.json"
    path.write_text(FILE)
    assert list(read_file(path)) == ["classifier", "resnet50"]


def test_the_commands_ask_what_the_page_says() -> None:
    """Each is a call of the server's, of the category that the page names; what is sent is a route."""
    asked = []
    for line in COMMANDS.strip().splitlines():
        words = shlex.split(line)
        method = words[words.index("-X") + 1] if "-X" in words else "GET"
        url = next(word for word in words if "/" in word and word != "curl" and not word.startswith("{"))
        route = find(method, url.removeprefix("localhost:8000"))
        asked.append((route.action, route_category(route)))
        if "-d" in words:
            assert read_route(words[words.index("-d") + 1], "resnet50", "the page").arms
    assert asked == [
        (Action.CHANGE_TRAFFIC, "model-repository"), (Action.TRAFFIC, "model-config"),
        (Action.ALL_TRAFFIC, "model-config"), (Action.DELETE_TRAFFIC, "model-repository"),
    ]  # fmt: skip


def test_metrics_have_the_names_of_the_page() -> None:
    """And every result is explained."""
    counts = RouteCounts()
    counts.arm("m:1")
    counts.shadow("m:2")
    names = set(re.findall(r"# TYPE (\w+)", render({"m": counts}).decode()))
    assert names == set(re.findall(r"`(conch_(?:traffic|shadow)_\w+)`", PAGE))
    assert all(f"`{outcome}`" in PAGE for outcome in OUTCOMES)
    assert ", ".join(RESULTS) in PAGE
