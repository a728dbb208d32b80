"""The command `conch check`: options, exit codes, forms of output, and what a fix may do."""

from __future__ import annotations

import dataclasses
import json
import socket
from pathlib import Path

import pytest

from conch.check.finding import Edit, Finding, Fix, MakeFolder, Move, Place, Severity
from conch.check.fixing import carry_out, choose
from conch.cli.check import main
from support.broken_repositories import ALL, MODEL, ONNX, PYTHON, file_of, put
from support.onnx_models import identity

Capture = pytest.CaptureFixture[str]


def sound(root: Path, name: str = "m", config: str = ONNX) -> None:
    put(root, {f"{name}/config.pbtxt": config, f"{name}/1/model.onnx": file_of(identity())})


def test_a_sound_repository_is_0(tmp_path: Path, capsys: Capture) -> None:
    """Nothing is wrong: one line, exit code 0."""
    sound(tmp_path)
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out == "1 model: no findings\n"


def test_an_error_is_1_with_place_reason_and_fix(tmp_path: Path, capsys: Capture) -> None:
    """The text shows file:line:column, the line itself, why, how, and what --fix would do."""
    ALL["wrong_type"].build(tmp_path)
    assert main([str(tmp_path)]) == 1
    first = capsys.readouterr().out.split("\n\n")[0].splitlines()
    path = tmp_path / "wrong_type" / "config.pbtxt"
    assert first[0] == (
        f"{path}:3:21: error: input 'x': the model's type is TYPE_INT64, the config says TYPE_FP32 [onnx-types-agree]"
    )
    assert first[1] == '     3 | input [ { name: "x" data_type: TYPE_FP32 dims: [ 2 ] } ]'
    assert first[2].index("^") == first[1].index("data_type")
    assert first[3].startswith("  why: ")
    assert first[5] == "  --fix: write data_type: TYPE_INT64"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "the following arguments are required"),
        (["--colour", "."], "unrecognized arguments: --colour"),
        (["s3://bucket/models"], "s3://bucket/models is not on this machine"),
        ([".", "--memory-budget=much"], "expected such as 6GiB"),
        ([".", "--model=nobody"], "no model 'nobody'"),
    ],
)
def test_bad_usage_is_2(arguments: list[str], said: str, tmp_path: Path, capsys: Capture) -> None:
    """What is wrong with the command line goes to stderr."""
    assert main([str(tmp_path) if each == "." else each for each in arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path, capsys: Capture) -> None:
    """So is a model's folder that is given as a repository."""
    sound(tmp_path)
    assert main([str(tmp_path / "nowhere")]) == 1
    assert "there is no such folder [repository-is-readable]" in capsys.readouterr().out
    assert main([str(tmp_path / "m")]) == 1
    assert f"give the folder above it: {tmp_path}" in capsys.readouterr().out


def test_strict_makes_errors_of_warnings(tmp_path: Path, capsys: Capture) -> None:
    """A field without effect is a warning; with --strict nothing may be ignored."""
    sound(tmp_path, config=ONNX + "optimization { priority: PRIORITY_MAX }\n")
    assert main([str(tmp_path)]) == 0
    assert "5:16: warning: 'optimization.priority' is accepted and has no effect" in capsys.readouterr().out
    assert main([str(tmp_path), "--strict"]) == 1


def test_json_is_stable(tmp_path: Path, capsys: Capture) -> None:
    """The fields of docs/check.md, and no others."""
    ALL["own_name"].build(tmp_path)
    ALL["wrong_type"].build(tmp_path)
    assert main([str(tmp_path), "--format", "json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"schema", "models", "errors", "warnings", "notes", "findings", "fixed", "diffs"}
    assert found["schema"] == 1
    missing, typed, _ = found["findings"]
    fields = {"rule", "severity", "model", "path", "line", "column", "message", "why", "hint", "fix"}
    assert set(missing) == set(typed) == fields
    assert (missing["line"], typed["line"]) == (None, 3)
    (change,) = typed["fix"]["changes"]
    text = Path(change["path"]).read_text()
    assert change["kind"] == "edit"
    assert (text[change["start"] : change["end"]], change["text"]) == ("TYPE_FP32", "TYPE_INT64")


def test_github_annotations(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """One workflow command for each finding, with the path as seen from the working folder."""
    ALL["wrong_size"].build(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main([".", "--format=github"]) == 1
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("::error file=wrong_size/config.pbtxt,line=6,col=13,title=onnx-dims-agree::input 'x'")


def test_fix_tells_and_dry_run_changes_nothing(tmp_path: Path, capsys: Capture) -> None:
    """--dry-run shows the diff that --fix then makes."""
    ALL["wrong_size"].build(tmp_path)
    path = tmp_path / "wrong_size" / "config.pbtxt"
    before = path.read_bytes()
    assert main([str(tmp_path), "--dry-run"]) == 1
    shown_first = capsys.readouterr().out
    assert path.read_bytes() == before
    assert main([str(tmp_path), "--fix"]) == 0
    shown_then = capsys.readouterr().out
    for text in (shown_first, shown_then):
        assert "-    dims: [ 1, 3, 224, 244 ] # pose\n+    dims: [ 1, 3, 224, 224 ] # pose\n" in text
    assert "would fix onnx-dims-agree" in shown_first
    assert shown_then.endswith("1 model: no findings\n")


def test_line_ends_and_marks_are_kept(tmp_path: Path) -> None:
    """A file from Windows stays one: only what is wrong changes."""
    config = "\ufeff" + ONNX.replace("\n", "\r\n").replace("TYPE_FP32", "FLOAT32", 1)
    sound(tmp_path, config=config)
    assert main([str(tmp_path), "--fix"]) == 0
    left = (tmp_path / "m" / "config.pbtxt").read_bytes().decode()
    assert left == config.replace("FLOAT32", "TYPE_FP32", 1)


def test_nothing_is_written_over(tmp_path: Path) -> None:
    """A rename whose target is there is not made."""
    (tmp_path / "a").write_text("one")
    (tmp_path / "b").write_text("two")
    change = Move(tmp_path / "a", tmp_path / "b")
    finding = Finding("model-file-is-there", Severity.ERROR, "m", Place(tmp_path), "", "", Fix("rename", (change,)))
    _, diffs = carry_out([finding])
    assert diffs == [f"not renamed: {tmp_path / 'b'} exists"]
    assert ((tmp_path / "a").read_text(), (tmp_path / "b").read_text()) == ("one", "two")


def test_what_cannot_be_written_is_told(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fix that failed is not called done, and the others are made."""
    ALL["wrong_size"].build(tmp_path)
    sound(tmp_path)
    (tmp_path / "m" / "1").rename(tmp_path / "m" / "v1")
    path = tmp_path / "wrong_size" / "config.pbtxt"
    write = Path.write_bytes

    def refused(self: Path, data: bytes) -> int:
        if self == path:
            raise PermissionError(13, "Permission denied")
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", refused)
    assert main([str(tmp_path), "--fix"]) == 1
    out = capsys.readouterr().out
    assert f"not written: {path}: Permission denied" in out
    assert "fixed version-folder-is-a-number" in out
    assert "fixed onnx-dims-agree" not in out


def test_a_rename_that_fails_is_told(tmp_path: Path) -> None:
    """As where the file is gone since it was seen."""
    changes = (MakeFolder(tmp_path / "there"), Move(tmp_path / "gone", tmp_path / "there" / "x"))
    finding = Finding("model-file-is-there", Severity.ERROR, "m", Place(tmp_path), "", "", Fix("rename", changes))
    done, diffs = carry_out([finding])
    assert done == []
    assert diffs == [
        f"make folder {tmp_path / 'there'}",
        f"not renamed: {tmp_path / 'gone'}: No such file or directory",
    ]
    (tmp_path / "file").touch()
    stuck = MakeFolder(tmp_path / "file" / "x")
    assert carry_out([dataclasses.replace(finding, fix=Fix("make", (stuck,)))])[1] == [
        f"not made: {stuck.path}: Not a directory"
    ]


@pytest.mark.parametrize("form", ["text", "json", "github"])
def test_names_that_are_no_text_are_shown(form: str, tmp_path: Path, capsys: Capture) -> None:
    """Names of files are bytes: what is no UTF-8 is escaped."""
    sound(tmp_path)
    (tmp_path / "m" / "v\udcff").mkdir()
    assert main([str(tmp_path), f"--format={form}"]) == 0
    assert "folder 'v\\udcff' is not a version" in capsys.readouterr().out.encode().decode()


OUTSIDE = {
    "TOP/elsewhere/Model.onnx": "default_model_filename",
    "../../../elsewhere/Model.onnx": "default_model_filename",
    "TOP/elsewhere/labels.txt": "label_filename",
    "../../elsewhere/labels.txt": "label_filename",
}


@pytest.mark.parametrize(("name", "field"), OUTSIDE.items())
def test_a_fix_never_leaves_the_model(name: str, field: str, tmp_path: Path) -> None:
    """Whatever path a config names, no file of the model is moved there."""
    written = f'{field}: "{name.replace("TOP", str(tmp_path))}"'
    config = ONNX.replace('name: "y"', f'name: "y" {written}') if field == "label_filename" else f"{ONNX}\n{written}"
    put(tmp_path, {"r/m/config.pbtxt": config + "\nversion_policy { all {} }", "r/m/labels.txt": "a",
                   "r/m/1/model.onnx": file_of(identity()), "r/m/2/model.onnx": file_of(identity()),
                   "elsewhere/x": ""})  # fmt: skip
    before = sorted(tmp_path.rglob("*"))
    assert main([str(tmp_path / "r")]) == 1
    main([str(tmp_path / "r"), "--fix"])
    assert sorted(tmp_path.rglob("*")) == before


HOSTILE = {
    "a number in another base": ONNX + "\nmax_batch_size: 4 dynamic_batching { preferred_batch_size: [ 0x2, 011 ] }",
    "a name that no disk takes": ONNX.replace('name: "y"', f'name: "y" label_filename: "{"a" * 300}"'),
    "a file that no disk takes": f'{ONNX}\ndefault_model_filename: "{"a" * 300}"',
    "a program that no disk takes": f'{PYTHON}\ndefault_model_filename: "{"a" * 300}"',
    "a state without end": (
        f"{PYTHON}\nmax_batch_size: 4 sequence_batching {{ oldest {{ max_candidate_sequences: 4 }} "
        'state { input_name: "i" output_name: "o" data_type: TYPE_FP32 dims: [ 4611686018427387904 ] } }'
    ),
}


@pytest.mark.parametrize("config", HOSTILE.values(), ids=HOSTILE)
def test_hostile_configs_end_in_findings(config: str, tmp_path: Path) -> None:
    """And in nothing else."""
    put(tmp_path, {"m/config.pbtxt": config, "m/1/model.onnx": file_of(identity()), "m/1/model.py": MODEL})
    assert main([str(tmp_path)]) == 1


@pytest.mark.parametrize("code", ["-" * 100_000 + "1", "+".join(["1"] * 20_000), "(" * 3000 + ")" * 3000])
def test_a_program_that_is_too_deep_is_no_program(code: str, tmp_path: Path, capsys: Capture) -> None:
    """Python gives up on such expressions in several ways."""
    put(tmp_path, {"m/config.pbtxt": PYTHON, "m/1/model.py": f"x = {code}\n{MODEL}"})
    assert main([str(tmp_path)]) == 1
    assert "model.py is no valid Python: " in capsys.readouterr().out


def test_fixes_that_meet_take_turns(tmp_path: Path) -> None:
    """Of two edits of the same characters the first is made now, the other after another look."""
    path = tmp_path / "config.pbtxt"

    def finding(start: int, end: int) -> Finding:
        fix = Fix("", (Edit(path, start, end, "x"),))
        return Finding("config-text-is-sound", Severity.ERROR, "m", Place(path), f"{start}", "", fix)

    assert [each.message for each in choose([finding(0, 4), finding(2, 6), finding(4, 6)])] == ["0", "4"]


def test_models_of_one_name(tmp_path: Path, capsys: Capture) -> None:
    """In two repositories: an error, unless there are namespaces."""
    sound(tmp_path / "one")
    sound(tmp_path / "two")
    arguments = [str(tmp_path / "one"), str(tmp_path / "two")]
    assert main(arguments) == 1
    assert "[model-name-is-unique]" in capsys.readouterr().out
    assert main([*arguments, "--model-namespacing=true"]) == 0


def test_one_model_alone(tmp_path: Path, capsys: Capture) -> None:
    """--model tells of one, and the exit code is about it."""
    sound(tmp_path)
    ALL["wrong_type"].build(tmp_path)
    assert main([str(tmp_path), "--model", "m"]) == 0
    assert capsys.readouterr().out == "1 model: no findings\n"


COMPLETE = """
    @staticmethod
    def auto_complete_config(config):
        open(__file__ + ".ran", "w").close()
        config.add_input({"name": "x", "data_type": "TYPE_FP32", "dims": [2]})
        config.add_output({"name": "y", "data_type": "TYPE_FP32", "dims": WHAT})
        return config
"""


@pytest.mark.parametrize(("dims", "rule"), [("[2]", None), ("[0]", "outputs-are-sound"), ("1/0", "python-auto")])
def test_code_runs_only_when_asked(dims: str, rule: str | None, tmp_path: Path, capsys: Capture) -> None:
    """auto_complete_config is run with --import alone; a note says that it was not."""
    put(tmp_path, {"m/config.pbtxt": 'backend: "python"\n', "m/1/model.py": MODEL + COMPLETE.replace("WHAT", dims)})
    assert main([str(tmp_path)]) == 0
    assert "note: its inputs and outputs come from auto_complete_config" in capsys.readouterr().out
    ran = tmp_path / "m" / "1" / "model.py.ran"
    assert not ran.exists()
    assert main([str(tmp_path), "--import"]) == (0 if rule is None else 1)
    assert ran.exists()
    assert rule is None or rule in capsys.readouterr().out


def test_memory_is_compared_with_a_budget(tmp_path: Path, capsys: Capture) -> None:
    """A model whose files are larger than the budget can never be loaded; all together larger is a warning."""
    put(tmp_path, {f"{name}/config.pbtxt": PYTHON for name in "abc"})
    put(tmp_path, {f"{name}/1/model.py": MODEL + f"# {'x' * 1000}\n" for name in "abc"})
    assert main([str(tmp_path), "--memory-budget=ram=3KiB,gpu:0=1GiB"]) == 0
    assert "the files of all models are 3." in capsys.readouterr().out
    assert main([str(tmp_path), "--memory-budget=512"]) == 1
    assert "the memory budget is 512 B" in capsys.readouterr().out


def test_no_socket_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A check starts no server and asks none."""
    monkeypatch.setattr(socket.socket, "bind", lambda *_: pytest.fail("bound"))
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("connected"))
    for each in ALL.values():
        each.build(tmp_path)
    assert main([str(tmp_path)]) == 1


def test_a_misspelt_parameter_of_ours(tmp_path: Path, capsys: Capture) -> None:
    """The backend cannot know it; the server says which one was meant, and --fix writes it."""
    value = """value: { string_value: '{"pinned": true}' }"""
    sound(tmp_path, config=ONNX + 'parameters: { key: "conch_memmory" ' + value + " }\n")
    assert main([str(tmp_path), "--fix"]) == 0
    assert '"conch_memory"' in (tmp_path / "m" / "config.pbtxt").read_text()
    told = capsys.readouterr().out
    assert "fixed parameter-has-effect" in told
    assert told.endswith("1 model: 0 errors, 0 warnings, 1 note\n")


def test_what_needs_a_flag_is_noted(tmp_path: Path, capsys: Capture) -> None:
    """A check does not know the server's flags: it names those that a config needs, and does not fail."""
    config = ONNX + "response_cache { enable: true }\ninstance_group [ { rate_limiter { priority: 1 } } ]\n"
    sound(tmp_path, config=config)
    assert main([str(tmp_path), "--strict"]) == 0
    told = capsys.readouterr().out
    assert "5:1: note: 'response_cache' has an effect only with --cache-config=local" in told
    assert "6:20: note: 'instance_group.rate_limiter' has an effect only with --rate-limit=execution_count" in told


def test_an_ensembles_mistake_names_the_step(tmp_path: Path, capsys: Capture) -> None:
    """Step, models and tensor are told, and the line of the ensemble's own tensor."""
    ALL["ensemble_shape"].build(tmp_path)
    assert main([str(tmp_path)]) == 1
    told = capsys.readouterr().out
    assert "config.pbtxt:4:" in told
    assert "error: step 0: in ensemble ensemble_shape, ensemble tensor y: inconsistent shape: [-1,10]" in told


def test_native_batching_libraries_are_told_of(tmp_path: Path, capsys: Capture) -> None:
    """Triton would load it, and it changes nothing here."""
    sound(tmp_path)
    put(tmp_path, {"m/1/batchstrategy.so": ""})
    assert main([str(tmp_path)]) == 0
    assert "batchstrategy.so is ignored" in capsys.readouterr().out


def test_warm_up_samples_are_checked_as_requests(tmp_path: Path, capsys: Capture) -> None:
    """A sample that no client could send does not load."""
    sample = 'model_warmup [ { name: "s" batch_size: 1 inputs { key: "x" value { data_type: TYPE_FP32 DIMS } } } ]\n'
    sound(tmp_path, config=ONNX + sample.replace("DIMS", "dims: [ 3 ] zero_data: true"))
    assert main([str(tmp_path)]) == 1
    assert "unexpected shape for input 'x'" in capsys.readouterr().out
