"""Repository agents: what they are told, what they may do, and the one that checks digests."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from functools import partial
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from shutil import rmtree

import pytest
from blake3 import blake3

from conch.repository import agent_find
from conch.repository.agent_find import Agents
from conch.repository.agents import AgentStore
from conch.repository.api import StoredModel
from conch.repository.local import LocalStore
from conch.types.error import InferError

SPY = """
from pathlib import Path

LOG = Path(__file__).with_name("log")


class TritonRepoAgent:
    def initialize(self, name):
        self.say(f"made {name}")

    def model_action(self, action, model):
        self.say(f"{action} {model.name} {model.parameters.get('mark', '')}")
        if action == "LOAD":
            if "refuse" in model.parameters:
                raise ValueError("not today")
            if "elsewhere" in model.parameters:
                place = model.mutable_directory()
                (place / "1").mkdir()
                (place / "1" / "model.py").write_text("moved")
                (place / "3").mkdir()
                if "anew" in model.parameters:
                    (place / "config.pbtxt").write_text('backend: "opened"')
                model.state = place
                return place
            if "wrong" in model.parameters:
                return 7
        if action.startswith("UNLOAD") and "exits" in model.parameters:
            raise SystemExit(1)
        if action == "LOAD_COMPLETE" and "late" in model.parameters:
            raise ValueError("too late to stop it")

    def finalize(self):
        self.say("gone")

    def say(self, text):
        with LOG.open("a") as log:
            log.write(text + "\\n")
"""


class House:
    def __init__(self, place: Path) -> None:
        self.place = place
        self.directory = place / "agents"
        (self.directory / "spy").mkdir(parents=True)
        (self.directory / "spy" / "agent.py").write_text(SPY)
        self.model = place / "repository" / "m"
        (self.model / "1").mkdir(parents=True)
        (self.model / "1" / "model.py").write_text("code")
        self.agents = Agents(self.directory)
        self.store = AgentStore(LocalStore([place / "repository"]), self.agents)

    def config(self, *agents: str) -> None:
        text = "model_repository_agents { agents [ " + ", ".join(agents) + " ] }" if agents else ""
        (self.model / "config.pbtxt").write_text(text)

    def said(self) -> list[str]:
        log = self.directory / "spy" / "log"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return lines

    def refusal(self) -> InferError:
        with pytest.raises(InferError) as caught:
            self.store.fetch("m")
        return caught.value


def agent(name: str = "spy", **parameters: str) -> str:
    given = "".join(f'parameters {{ key: "{key}" value: "{value}" }} ' for key, value in parameters.items())
    return f'{{ name: "{name}" {given} }}'


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def test_models_without_agents_pass(house: House) -> None:
    """A store with agents gives what the store inside gives."""
    house.config()
    assert house.store.fetch("m") == LocalStore([house.place / "repository"]).fetch("m")
    assert (house.store.names(), house.store.duplicates(), list(house.store.namespaces)) == (["m"], frozenset(), [])
    assert list(house.store.survey().looks) == ["m"]
    assert house.agents.used() == []


def test_an_agent_sees_a_model_come_and_go(house: House) -> None:
    """LOAD, LOAD_COMPLETE when it serves, UNLOAD and UNLOAD_COMPLETE when nothing uses it any more."""
    house.config(agent(mark="a"))
    stored = house.store.fetch("m")
    assert house.said() == ["made spy", "LOAD m a"]
    stored.served()
    stored.served()
    assert house.said() == ["LOAD_COMPLETE m a"]
    stored.release()
    assert house.said() == ["UNLOAD m a", "UNLOAD_COMPLETE m a"]
    assert house.agents.used() == [("spy", str(house.directory / "spy" / "agent.py"))]
    house.agents.close()
    assert house.said() == ["gone"]


def test_an_agent_hears_of_the_end_before_and_after_it(house: House) -> None:
    """UNLOAD comes while the model is still there, once; UNLOAD_COMPLETE when it is gone."""
    house.config(agent(mark="a"))
    first = house.store.fetch("m")
    first.served()
    house.said()
    first.leaves()
    first.leaves()
    assert house.said() == ["UNLOAD m a"]
    first.release()
    assert house.said() == ["UNLOAD_COMPLETE m a"]


def test_a_model_that_is_made_anew_does_not_leave(house: House) -> None:
    """Of two loads of the same files the first one's end is not the model's."""
    house.config(agent(mark="a"))
    first, second = house.store.fetch("m"), house.store.fetch("m")
    first.served()
    again = house.store.fetch("m")
    again.served()
    house.said()
    first.leaves()
    first.release()
    assert house.said() == []
    again.release()
    assert house.said() == ["UNLOAD m a", "UNLOAD_COMPLETE m a"]
    second.release()
    assert house.said() == ["LOAD_FAIL m a"]


def test_a_model_that_leaves_is_another_visit_when_it_comes_back(house: House) -> None:
    """Who has heard UNLOAD hears LOAD before the model serves again."""
    house.config(agent(mark="a"))
    first = house.store.fetch("m")
    first.served()
    first.leaves()
    house.said()
    second = house.store.fetch("m")
    second.served()
    assert house.said() == ["LOAD m a", "LOAD_COMPLETE m a"]
    first.release()
    assert house.said() == ["UNLOAD_COMPLETE m a"]
    assert house.store.fetch("m").fingerprint == second.fingerprint
    assert house.said() == []


def test_an_agent_that_would_exit_leaves_no_files(house: House, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever an agent raises at the end, the others hear of it and what it was lent is given back."""
    house.config(agent(mark="a", elsewhere="yes", exits="yes"), agent(mark="b"))
    stored = house.store.fetch("m")
    stored.served()
    house.said()
    stored.release()
    assert house.said() == ["UNLOAD m a", "UNLOAD m b", "UNLOAD_COMPLETE m a", "UNLOAD_COMPLETE m b"]
    assert not stored.directory.exists()
    assert "repository agent 'spy' failed at UNLOAD of 'm'" in caplog.text


def test_copies_of_one_content_are_one_visit(house: House) -> None:
    """A store that makes a folder for each load tells by `place` where the model is: nobody is asked again."""
    house.config(agent(mark="a"))
    inner = house.store._inner
    copies: list[Path] = []

    class Copies(LocalStore):
        def fetch(self, name: str) -> StoredModel:
            stored = inner.fetch(name)
            copies.append(house.place / f"copy{len(copies)}")
            shutil.copytree(stored.directory, copies[-1])
            return replace(stored, directory=copies[-1], place="s3://bucket/m", release=partial(rmtree, copies[-1]))

    store = AgentStore(Copies([house.place / "repository"]), house.agents)
    first = store.fetch("m")
    first.served()
    house.said()
    second = store.fetch("m")
    second.served()
    second.release()
    assert house.said() == []
    assert first.directory.exists()
    first.release()
    assert house.said() == ["UNLOAD m a", "UNLOAD_COMPLETE m a"]
    assert not any(each.exists() for each in copies)


def test_an_agent_hears_of_a_failed_load(house: House) -> None:
    """A load that never came to serve ends with LOAD_FAIL."""
    house.config(agent())
    house.store.fetch("m").release()
    assert house.said()[1:] == ["LOAD m ", "LOAD_FAIL m "]


def test_what_has_not_changed_is_not_asked_again(house: House) -> None:
    """A load that finds the same files uses what the agents have made before, until the last user is gone."""
    house.config(agent(mark="a", elsewhere="yes"))
    first = house.store.fetch("m")
    first.served()
    house.said()
    second = house.store.fetch("m")
    assert (second.directory, second.fingerprint) == (first.directory, first.fingerprint)
    first.release()
    assert house.said() == []
    second.release()
    assert house.said() == ["UNLOAD m a", "UNLOAD_COMPLETE m a"]
    assert not first.directory.exists()
    (house.model / "1" / "model.py").write_text("changed")
    house.store.fetch("m").release()
    assert house.said() == ["LOAD m a", "LOAD_FAIL m a"]


def test_an_agent_may_put_another_folder_in_place(house: House) -> None:
    """The model is loaded from there, the next agent sees that folder, and it is removed in the end."""
    house.config(agent(elsewhere="yes"), agent("checksum", **{"MD5:1/model.py": hashlib.md5(b"moved").hexdigest()}))
    stored = house.store.fetch("m")
    assert stored.versions == (1, 3)
    assert (stored.directory / "1" / "model.py").read_text() == "moved"
    assert stored.place == str(house.model)
    assert stored.config_source == str(house.model / "config.pbtxt")
    stored.release()
    assert not stored.directory.exists()


def test_an_agent_may_put_another_config_in_place(house: House) -> None:
    """As in Triton the config is read where the model is loaded from, unless it came with the request."""
    house.config(agent(elsewhere="yes", anew="yes"))
    stored = house.store.fetch("m")
    assert (stored.config_text, stored.config_source) == (
        'backend: "opened"',
        str(stored.directory / "config.pbtxt"),
    )
    (house.model / "1" / "model.py").write_text("changed")
    assert house.store.fetch("m").fingerprint.config == stored.fingerprint.config
    parameters = {"elsewhere": "yes", "anew": "yes"}
    given = json.dumps({"model_repository_agents": {"agents": [{"name": "spy", "parameters": parameters}]}})
    assert house.store.fetch_override("m", given, {}).config_text == given


def test_an_agent_that_raises_ends_the_load(house: House) -> None:
    """All agents that were asked hear of it, and what it raised is the reason."""
    house.config(agent(mark="a"), agent(mark="b", refuse="yes"))
    error = house.refusal()
    assert str(error) == "Internal: repository agent 'spy' refused model 'm': ValueError: not today"
    assert house.said() == ["made spy", "LOAD m a", "LOAD m b", "LOAD_FAIL m a", "LOAD_FAIL m b"]
    house.config(agent(wrong="yes"))
    assert "returned 7 for model 'm', expected a folder or None" in house.refusal().message


def test_what_is_raised_later_changes_nothing(house: House, caplog: pytest.LogCaptureFixture) -> None:
    """An agent that fails after LOAD is logged."""
    house.config(agent(late="yes"))
    house.store.fetch("m").served()
    assert "repository agent 'spy' failed at LOAD_COMPLETE of 'm'" in caplog.text


def test_configs_that_come_with_a_load_have_agents_too(house: House) -> None:
    """An override's agents are asked, in either spelling of JSON."""
    for key in ("model_repository_agents", "modelRepositoryAgents"):
        config = json.dumps({key: {"agents": [{"name": "spy", "parameters": {"mark": "json"}}]}})
        stored: StoredModel = house.store.fetch_override("m", config, {"1/model.py": b"x"})
        assert house.said()[-1] == "LOAD m json"
        stored.release()
        assert house.said() == ["LOAD_FAIL m json"]
        assert not stored.directory.exists()


def test_a_config_that_cannot_be_read_is_told_later(house: House) -> None:
    """Agents do not hide what is wrong with a config."""
    (house.model / "config.pbtxt").write_text("model_repository_agents {")
    assert house.store.fetch("m").config_text == "model_repository_agents {"


@pytest.mark.parametrize(
    ("name", "code", "text"),
    [
        ("nobody", None, "unable to find 'libtritonrepoagent_nobody.so' for repo agent 'nobody', searched: <agents>"),
        ("../spy", None, "'../spy' is no name of a repository agent"),
        (
            "broken",
            "1 /",
            "repository agent 'broken' cannot be imported: SyntaxError: invalid syntax (agent.py, line 1)",
        ),
        ("empty", "", "repository agent 'empty' has no class TritonRepoAgent in <agents>/empty/agent.py"),
        (
            "raising",
            "class TritonRepoAgent:\n    def __init__(self):\n        raise OSError('no')",
            "repository agent 'raising' cannot be made: OSError: no",
        ),
        ("quitting", "raise SystemExit(3)", "repository agent 'quitting' cannot be imported: SystemExit: 3"),
        (
            "leaving",
            "class TritonRepoAgent:\n    def __init__(self):\n        raise SystemExit(3)",
            "repository agent 'leaving' cannot be made: SystemExit: 3",
        ),
        ("idle", "class TritonRepoAgent: ...", "repository agent 'idle' has no method model_action"),
    ],
)
def test_agents_that_cannot_be_had(house: House, name: str, code: str | None, text: str) -> None:
    """Each way has its own text; Triton's where it has one."""
    if code is not None:
        (house.directory / name).mkdir()
        (house.directory / name / "agent.py").write_text(code)
    house.config(agent(name))
    assert house.refusal().message.replace(str(house.directory), "<agents>") == text


def test_native_agents_are_refused(house: House) -> None:
    """A library of Triton's is there and cannot be used: that is said, and how to replace it."""
    (house.directory / "native").mkdir()
    (house.directory / "native" / "libtritonrepoagent_native.so").touch()
    house.config(agent("native"))
    error = house.refusal()
    assert error.message.startswith("repository agent 'native' is the native library ")
    assert "agent.py" in error.hint


def test_agents_come_with_packages(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry point is an agent, and the operator's own folder goes before it."""
    point = EntryPoint("packed", "conch.repository.checksum:Checksum", agent_find.ENTRY_POINTS)
    monkeypatch.setattr(agent_find, "entry_points", lambda **_: EntryPoints([point]).select(name=_["name"]))
    house.agents.find("packed")
    house.agents.find("spy")
    assert [name for name, _ in house.agents.used()] == ["packed", "spy"]


def test_checksums_of_all_kinds(house: House) -> None:
    """A model whose files have the digests that its config names is loaded, however they are written."""
    data = b"code"
    digests = {
        "MD5": hashlib.md5(data).hexdigest(),
        "md5": hashlib.md5(data).hexdigest(),
        "SHA256": hashlib.sha256(data).hexdigest().upper(),
        "Sha512": hashlib.sha512(data).hexdigest(),
        "BLAKE3": blake3(data).hexdigest(),
    }
    house.config(agent("checksum", **{f"{name}:1/model.py": value for name, value in digests.items()}))
    assert house.store.fetch("m").versions == (1,)
    assert house.agents.used() == [("checksum", "built in")]


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (
            "MD5:1/model.py",
            "Invalid argument: Mismatched MD5 hash for file 1/model.py, expect: 00, got: "
            + hashlib.md5(b"code").hexdigest(),
        ),
        ("1/model.py", "Invalid argument: failed to parse key: 1/model.py"),
        ("CRC:1/model.py", "Unsupported: Unsupported checksum algorithm: CRC"),
        ("MD5:2/x", "Invalid argument: failed to open text file for read 2/x: No such file or directory"),
        (
            "MD5:../../agents/spy/agent.py",
            (
                "Invalid argument: failed to open text file for read ../../agents/spy/agent.py: it is outside of the "
                "model's folder"
            ),
        ),
    ],
)
def test_checksums_that_stop_a_load(house: House, key: str, text: str) -> None:
    """A digest that differs, and parameters that say nothing, end the load in the words of Triton's agent."""
    house.config(agent("checksum", **{key: "00"}))
    assert str(house.refusal()) == text
