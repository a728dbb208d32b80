"""Loads by request: configs and files that come with them, policies, ensembles, mistakes of all kinds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from parity.cases import Case, Grpc, b64, get, infer, post, x_int
from parity.polling import CONFIG, ENSEMBLE, MODEL, Change, make

FLAGS = ("--model-control-mode=explicit", "--load-model=kept", "--load-model=above", "--model-config-name=other")
PLAIN: dict[str, Any] = {
    "backend": "python",
    "input": [{"name": "X", "data_type": "TYPE_INT32", "dims": [1]}],
    "output": [{"name": "WHO", "data_type": "TYPE_STRING", "dims": [1]}],
    "instance_group": [{"kind": "KIND_CPU"}],
}


def write(root: Path, oracle: bool) -> None:
    for name in ("kept", "member", "given", "both", "policy", "numbers", "bare"):
        make(root / name)
    make(root / "policy", 2, 3)
    (root / "above" / "1").mkdir(parents=True)
    (root / "above" / "config.pbtxt").write_text(ENSEMBLE % ("member", ""))
    (root / "both" / "configs").mkdir()
    (root / "both" / "configs" / "other.pbtxt").write_text(
        CONFIG + 'parameters { key: "which" value { string_value: "other" } }'
    )
    (root / "numbers" / "007").mkdir()
    (root / "numbers" / "one").mkdir()
    shutil.rmtree(root / "bare" / "1")


def load(model: str, name: str = "", config: Any = None, files: dict[str, str] | None = None, **more: Any) -> Case:
    parameters: dict[str, Any] = (
        {} if config is None else {"config": config if isinstance(config, str) else json.dumps(config)}
    )
    parameters |= {f"file:{path}": content for path, content in (files or {}).items()}
    parameters |= more
    body = {"parameters": parameters} if parameters else b""
    return post(f"control: load {model}{name}", f"/v2/repository/models/{model}/load", body, settle=True)


def unload(model: str, name: str = "", *, dependents: bool = False) -> Case:
    body = {"parameters": {"unload_dependents": True}} if dependents else b""
    return post(f"control: unload {model}{name}", f"/v2/repository/models/{model}/unload", body, settle=True)


def index(when: str) -> Case:
    return post(f"control: index {when}", "/v2/repository/index", b"")


def ask(model: str, when: str) -> Case:
    return infer(f"control: {when}", model, {"inputs": [x_int()]})


def policy(value: str) -> Change:
    """Another version policy in the repository's config."""

    def change(root: Path) -> None:
        (root / "policy" / "config.pbtxt").write_text(CONFIG + f"version_policy: {{ {value} }}\n")

    return Change(f"control: policy {value}", change)


def _edit(root: Path) -> None:
    (root / "kept" / "1" / "model.py").write_text(MODEL % "second")


def _break(root: Path) -> None:
    (root / "kept" / "1" / "model.py").write_text("def (")


def _remove(root: Path) -> None:
    shutil.rmtree(root / "kept")


def configs() -> list[Case]:
    """Configs that come with a load."""
    bad: tuple[tuple[str, Any], ...] = (
        ("empty", ""),
        ("no object", "[]"),
        ("no JSON", "{'backend'}"),
        ("cut off", '{"backend": "python"'),
        ("nothing in it", {}),
        ("an unknown backend", {**PLAIN, "backend": "nothing"}),
        ("another name", {**PLAIN, "name": "other"}),
        ("a negative batch size", {**PLAIN, "max_batch_size": -1}),
        ("a word for a number", {**PLAIN, "max_batch_size": "many"}),
        ("a number in quotes", {**PLAIN, "max_batch_size": "4"}),
        ("an unknown type", {**PLAIN, "input": [{"name": "X", "data_type": "TYPE_LONG", "dims": [1]}]}),
        ("no dims", {**PLAIN, "input": [{"name": "X", "data_type": "TYPE_INT32"}]}),
        ("a policy of no version", {**PLAIN, "version_policy": {"specific": {"versions": [9]}}}),
    )
    return [
        load("given"),
        ask("given", "as it is"),
        *(load("given", f", config: {name}", config) for name, config in bad),
        ask("given", "after bad configs"),
        index("after bad configs"),
        load("given", ", a good config", {**PLAIN, "parameters": {"mark": {"string_value": "given"}}}),
        get("control: config given", "/v2/models/given/config"),
        load("given", ", the same config again", {**PLAIN, "parameters": {"mark": {"string_value": "given"}}}),
        load("nobody", " with a config", PLAIN),
        load("given", ", a config by number", 7),
        Grpc(
            "grpc control: load given, config in bytes",
            "RepositoryModelLoad",
            {"model_name": "given", "parameters": {"config": {"bytes_param": b64(b"{}")}}},
        ),
    ]


def files() -> list[Case]:
    """Files that come with a load."""
    model = b64((MODEL % "file").encode())
    bad: tuple[tuple[str, dict[str, str]], ...] = (
        ("no base64", {"1/model.py": "!!"}),
        ("out of the folder", {"../x/model.py": model}),
        ("an absolute path", {"/1/model.py": model}),
        ("the folder itself", {".": model}),
        ("no version", {"model.py": model}),
        ("a version that is no number", {"one/model.py": model}),
        ("a broken model", {"1/model.py": b64(b"def (")}),
    )
    return [
        *(load("given", f", files: {name}", PLAIN, content) for name, content in bad),
        ask("given", "after bad files"),
        load("given", ", files without config", None, {"1/model.py": model}),
        load("given", ", a file", PLAIN, {"1/model.py": model}),
        ask("given", "with a file"),
        load("given", ", two versions", PLAIN, {"3/model.py": model, "5/model.py": model}),
        ask("given", "with version 5"),
        index("with files"),
        load("made", " of files alone", {**PLAIN, "name": "made"}, {"1/model.py": model}),
        ask("made", "of files alone"),
        index("with a made model"),
        load("given", " without files"),
        ask("given", "without files"),
        unload("made"),
        load("made", " without files"),
    ]


def policies() -> list[Case]:
    """Which versions serve follows the policy."""
    cases: list[Case] = [load("policy"), ask("policy", "latest")]
    for value in (
        "all { }",
        "specific { versions: [ 1, 3 ] }",
        "latest { num_versions: 2 }",
        "specific { versions: 8 }",
        "latest { num_versions: 1 }",
    ):
        cases += [
            policy(value),
            load("policy", f" with {value}"),
            index(f"with {value}"),
            infer(
                f"control: version 1 with {value}",
                "policy/versions/1",
                {"inputs": [x_int()]},
            ),
        ]
    return cases


def members() -> list[Case]:
    """Ensembles and their members."""
    return [
        index("at the start"),
        get("control: ready at the start", "/v2/health/ready"),
        unload("above", " alone"),
        index("without the ensemble"),
        load("above"),
        load("member"),
        unload("above", " with its members, one of which was asked for", dependents=True),
        index("with a member that was asked for"),
        load("above", " again"),
        unload("member"),
        index("without the member"),
        ask("above", "without the member"),
        load("above", " once more"),
        ask("above", "at last"),
        unload("above", " with its members", dependents=True),
        index("without all"),
    ]


def changes() -> list[Case]:
    """Files that change between loads."""
    return [
        load("both"),
        get("control: config by name", "/v2/models/both/config"),
        load("numbers"),
        index("of odd folders"),
        Change("control: kept is edited", _edit),
        ask("kept", "before the load"),
        load("kept", " edited"),
        ask("kept", "after the load"),
        Change("control: kept is broken", _break),
        load("kept", " broken"),
        ask("kept", "although broken"),
        get("control: ready although broken", "/v2/health/ready"),
        Change("control: kept is removed", _remove),
        load("kept", " removed"),
        ask("kept", "although removed"),
        index("although removed"),
        unload("kept", " removed"),
        ask("kept", "removed and unloaded"),
        load("bare"),
        load("bare", " with a config", PLAIN),
    ]


CASES: list[Case] = [*members(), *configs(), *files(), *policies(), *changes()]
