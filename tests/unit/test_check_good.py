"""`conch check` has nothing to say against repositories that work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conch.check.engine import check
from conch.check.finding import Severity
from conch.check.subject import Options
from conch.cli.digits import MODEL
from parity.modes import MODES
from support.broken_repositories import MODEL as PYTHON_MODEL
from support.broken_repositories import ONNX, PYTHON, ensemble, file_of, put, step
from support.onnx_models import identity, scaled

ROOT = Path(__file__).parent.parent.parent
#: Loaded with the files of a request, without which it is no model.
SENT = {"bare"}
GOLDEN = ROOT / "tests" / "parity" / "golden"


@pytest.mark.parametrize("mode", MODES)
def test_what_triton_loads_has_no_errors(mode: str, tmp_path: Path) -> None:
    """Of the models that the real Triton loaded, none has an error; where its index is not known, none at all has."""
    MODES[mode].write(tmp_path, True)
    folders = [tmp_path / folder for folder in MODES[mode].folders] or [tmp_path]
    options = Options(namespacing=mode == "namespaces", backend_directory=tmp_path / "backends")
    findings = check(folders, options).findings
    wrong = {each.model: each for each in findings if each.severity is Severity.ERROR and each.model not in SENT}
    loaded = _loaded(GOLDEN / f"{mode}.json")
    assert not [each for name, each in wrong.items() if loaded is None or name in loaded]


def test_the_examples_lack_only_what_is_built() -> None:
    """The example's ONNX file and version folders are made by its build.py; everything else is sound."""
    findings = check([ROOT / "examples" / "embeddings" / "model_repository"], Options()).findings
    assert {(each.model, each.rule) for each in findings} <= {
        ("encoder", "model-file-is-there"),
        ("encoder", "version-folder-is-there"),
        ("embed", "version-folder-is-there"),
        ("embed", "ensemble-models-are-sound"),
    }


def test_a_sound_repository_has_no_findings(tmp_path: Path) -> None:
    """Not even a note."""
    put(tmp_path, {"plain/1/model.onnx": file_of(identity()), "written/config.pbtxt": ONNX,
                   "written/1/model.onnx": file_of(identity()), "written/2/model.onnx": file_of(identity()),
                   "python/config.pbtxt": PYTHON, "python/1/model.py": PYTHON_MODEL,
                   "optional/1/model.onnx": file_of(scaled()),
                   "chain/config.pbtxt": ensemble(step("written", {"x": "x"}, {"y": "m"}) + ",\n"
                                                  + step("python", {"x": "m"}, {"y": "y"})),
                   "chain/1/.keep": ""})  # fmt: skip
    report = check([tmp_path], Options())
    assert report.models == 5
    assert report.findings == []


def test_the_demo_repository_is_sound(tmp_path: Path) -> None:
    """A model without a config, as the demo writes it."""
    put(tmp_path, {f"{MODEL}/1/model.onnx": file_of(identity(shape=("batch", 64)))})
    assert check([tmp_path], Options()).findings == []


def test_a_config_by_name_is_the_one_that_is_checked(tmp_path: Path) -> None:
    """--model-config-name picks configs/<name>.pbtxt, as in the server."""
    put(tmp_path, {"m/config.pbtxt": ONNX, "m/configs/small.pbtxt": ONNX.replace("FP32", "FP64"),
                   "m/1/model.onnx": file_of(identity())})  # fmt: skip
    assert check([tmp_path], Options()).findings == []
    (first, _) = check([tmp_path], Options(config_name="small")).findings
    assert first.place.path == tmp_path / "m" / "configs" / "small.pbtxt"


def _loaded(golden: Path) -> set[str] | None:
    """The models that were ready, or had been, in any index that was recorded."""
    found: set[str] = set()
    asked = False
    for name, answer in json.loads(golden.read_text()).items() if golden.exists() else ():
        body = answer.get("body") if isinstance(answer, dict) else None
        if "index" not in name or not isinstance(body, list):
            continue
        asked = True
        found |= {each["name"] for each in body if each.get("state") == "READY" or each.get("reason") == "unloaded"}
    return found if asked else None


@pytest.mark.parametrize("order", [("one", "two"), ("two", "one")])
def test_ensembles_of_namespaces_have_their_own_models(order: tuple[str, str], tmp_path: Path) -> None:
    """Of two ensembles of one name each is compared with what lies beside it, in whatever order they are given."""
    sound, wrong = (ensemble(step(name, {"x": "x"}, {"y": "y"})) for name in ("pre", "nobody"))
    for place, config in (("one", wrong), ("two", sound)):
        put(tmp_path / place, {"pre/config.pbtxt": ONNX, "pre/1/model.onnx": file_of(identity()),
                               "ens/config.pbtxt": config, "ens/1/.keep": ""})  # fmt: skip
    findings = check([tmp_path / each for each in order], Options(namespacing=True)).findings
    found = [(each.rule, each.place.path) for each in findings]
    assert found == [("ensemble-models-are-there", tmp_path / "one" / "ens" / "config.pbtxt")]
