"""docs/repositories.md shows commands, a config and an agent: they must do what the page says."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from pathlib import Path

import pytest

from conch.config.flags import parse
from conch.config.pbtxt import parse_text
from conch.protocol.v2.repository import read_load
from conch.repository.agent_find import Agents
from conch.repository.agents import AgentStore
from conch.repository.local import LocalStore
from conch.service.control import check_parameters
from conch.types.error import InferError

PAGE = (Path(__file__).parent.parent.parent / "docs" / "repositories.md").read_text()
BLOCKS = re.findall(r"```(?:python)?\n(.*?)```", PAGE, re.DOTALL)


def block(word: str) -> str:
    (found,) = [each for each in BLOCKS if word in each]
    return found


def test_the_commands_are_understood() -> None:
    """A reader who copies them gets a server in the mode that the page is about."""
    modes = {}
    for text in BLOCKS:
        words = shlex.split(text.splitlines()[0])
        if words[:2] == ["conch", "serve"]:
            options = parse(words[2:], "conch serve", {}).repository
            modes[options.control_mode] = (options.poll_seconds, options.load_models)
    assert modes == {"poll": (5, ()), "explicit": (15, ("encoder", "reranker"))}


def test_the_bodies_of_loads_are_understood() -> None:
    """What the page has curl send is a load's parameters."""
    bodies = re.findall(r"/load -d '(.*)'", PAGE)
    assert [read_load(body.encode()) for body in bodies] == [{"force_reload": "true"}]
    for body in bodies:
        check_parameters(read_load(body.encode()))


def test_the_checksum_is_checked(tmp_path: Path) -> None:
    """The page's config lets its file in and keeps every other out."""
    model = tmp_path / "m"
    (model / "1").mkdir(parents=True)
    (model / "config.pbtxt").write_text(block("checksum"))
    (model / "1" / "model.onnx").write_bytes(b"test")
    assert hashlib.sha256(b"test").hexdigest() in block("checksum")
    store = AgentStore(LocalStore([tmp_path]), Agents(tmp_path / "none"))
    assert store.fetch("m").versions == (1,)
    (model / "1" / "model.onnx").write_bytes(b"forged")
    with pytest.raises(InferError, match=r"Mismatched SHA256 hash for file 1/model\.onnx"):
        store.fetch("m")


def test_the_agent_works(tmp_path: Path) -> None:
    """The page's agent has a model loaded from files that it makes."""
    (tmp_path / "agents" / "unmask").mkdir(parents=True)
    (tmp_path / "agents" / "unmask" / "agent.py").write_text(block("class TritonRepoAgent"))
    model = tmp_path / "repository" / "m"
    (model / "1").mkdir(parents=True)
    (model / "1" / "model.onnx.masked").write_bytes(bytes(byte ^ 7 for byte in b"weights"))
    config = 'model_repository_agents { agents [ { name: "unmask" parameters { key: "mask" value: "7" } } ] }'
    (model / "config.pbtxt").write_text(config)
    assert parse_text(config, "config.pbtxt").model_repository_agents.agents[0].name == "unmask"
    store = AgentStore(LocalStore([tmp_path / "repository"]), Agents(tmp_path / "agents"))
    stored = store.fetch("m")
    assert (stored.directory / "1" / "model.onnx").read_bytes() == b"weights"
    stored.release()
    assert not stored.directory.exists()
    assert json.dumps(stored.fingerprint.versions[1])
