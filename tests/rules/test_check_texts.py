"""Reading and editing the texts of configs: places are right, comments survive, and no text makes a check fail."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from conch.check.engine import check
from conch.check.finding import Edit
from conch.check.fixing import fix
from conch.check.outline import Field, outline
from conch.check.patched import Patched
from conch.check.subject import Options
from conch.check.writing import Writer, edited, overlap
from conch.config.pbtxt import parse_text
from support.broken_repositories import ensemble, step

CONFIG = """# A model.
name: "m"
backend: "identity"  # runs nothing
max_batch_size: 4
input [
  { name: "x" data_type: TYPE_FP32 dims: [ 2, 3 ] },  # pixels
  {
    name: 'z'
    data_type: TYPE_STRING
    dims: 1
    dims: 2  # rows
  }
]
output { name: "y" data_type: TYPE_FP32 dims: [ 2, 3 ] }
output: < name: "w" data_type: TYPE_STRING dims: [ 1, 2 ] >
dynamic_batching { }
parameters: { key: "execute_delay_ms", value: { string_value: "0" "0" } }
"""
ENSEMBLE = ensemble(step("a", {"x": "x"}, {"y": "m"}) + ",\n" + step("b", {"x": "m"}, {"y": "y"}))
PATH = Path("config.pbtxt")


def entries(root: Field, kind: str) -> list[tuple[str, list[int]]]:
    return [(each.scalar("name"), [int(dim.text) for dim in each.all("dims")]) for each in root.all(kind)]


def test_an_outline_reads_what_protobuf_reads() -> None:
    """Every way to write a field gives the same names and values."""
    config, root = parse_text(CONFIG, "config.pbtxt"), outline(CONFIG)
    for kind, tensors in (("input", config.input), ("output", config.output)):
        assert entries(root, kind) == [(each.name, list(each.dims)) for each in tensors]
    value = root.first("parameters", "value", "string_value")
    assert value is not None
    assert value.text == config.parameters["execute_delay_ms"].string_value == "00"


def test_spans_are_those_of_the_text() -> None:
    """A field's label and value are the characters that stand there."""
    for each in outline(CONFIG).walk():
        if each.name:
            assert CONFIG[each.label.start : each.label.end] == each.name
            shown = CONFIG[each.value.start : each.value.end]
            assert shown[0] in "{<" if each.children is not None else each.text in shown.replace('" "', "")


@given(st.sampled_from(["x", "z"]), st.lists(st.integers(-1, 99), min_size=1, max_size=4))
def test_dims_are_written_in_place(name: str, dims: list[int]) -> None:
    """However dims were written, they are the new ones, all else is as it was, and comments stay."""
    root = outline(CONFIG)
    (entry,) = [each for each in root.all("input") if each.scalar("name") == name]
    text = edited(CONFIG, Writer(PATH, CONFIG, root).numbers(entry, "dims", dims))
    config, before = parse_text(text, "config.pbtxt"), parse_text(CONFIG, "config.pbtxt")
    for tensor in before.input:
        if tensor.name == name:
            tensor.dims[:] = dims
    assert config == before
    assert all(comment in text for comment in ("# A model.", "# runs nothing", "# pixels"))


@given(st.sampled_from(["x", "z", "y", "w"]))
def test_an_entry_can_be_removed(name: str) -> None:
    """From a list or from fields of one name; what is left is sound."""
    root = outline(CONFIG)
    kind = "input" if name in "xz" else "output"
    (entry,) = [each for each in root.all(kind) if each.scalar("name") == name]
    config = parse_text(edited(CONFIG, Writer(PATH, CONFIG, root).remove(root, entry)), "config.pbtxt")
    left = {each.name for each in [*config.input, *config.output]}
    assert left == {"x", "y", "z", "w"} - {name}


@given(st.sampled_from(["", "dynamic_batching", "input", "output", "parameters"]))
def test_a_field_can_be_added_anywhere(home: str) -> None:
    """Into braces on one line or on several, or at the end of the text."""
    root = outline(CONFIG)
    parent = root.first(home) if home else root
    assert parent is not None
    written = {"": 'runtime: "r"', "dynamic_batching": "preserve_ordering: true", "parameters": "# nothing\n"}
    text = edited(CONFIG, [Writer(PATH, CONFIG, root).add(parent, written.get(home, "is_shape_tensor: true"))])
    config, before = parse_text(text, "config.pbtxt"), parse_text(CONFIG, "config.pbtxt")
    assert (config != before) is (home != "parameters")


edits = st.lists(
    st.builds(lambda a, b, text: Edit(PATH, min(a, b), max(a, b), text), st.integers(0, 40), st.integers(0, 40),
              st.text("abc", max_size=4)),
    max_size=4,
)  # fmt: skip


@given(st.text("0123456789", min_size=40, max_size=40), st.lists(edits, max_size=4))
def test_characters_are_found_again(text: str, rounds: list[list[Edit]]) -> None:
    """Each character that was not written by an edit is mapped to where it stood."""
    patched = Patched(text)
    for each in rounds:
        apart: list[Edit] = []
        for edit in each:
            if edit.end <= len(patched.text) and not any(overlap(edit, other) for other in apart):
                apart.append(edit)
        patched.apply(apart)
    for offset, character in enumerate(patched.text):
        if character.isdigit():
            assert text[patched.before(offset)] == character


words = st.sampled_from(
    [*'{}[]<>:,"#\n', " 8 ", "-1", '"x"', "TYPE_FP33", "name", "dims", "input", "max_batch_size", "key", "“", "\0", "é"]
)


@settings(max_examples=120, deadline=None)
@given(
    st.sampled_from([CONFIG, ENSEMBLE]),
    st.lists(st.tuples(st.integers(0, 500), st.integers(0, 12), words), min_size=1, max_size=4),
)
def test_no_text_makes_a_check_fail(text: str, damages: list[tuple[int, int, str]]) -> None:
    """Whatever was cut out of a config or put into it, there is a report, mending comes to an end, and what it leaves
    is read by protobuf or told of."""
    for place, length, word in damages:
        text = text[:place] + word + text[place + length :]
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "m"
        (model / "1").mkdir(parents=True)
        (model / "config.pbtxt").write_bytes(text.encode())
        outcome = fix(lambda: check([Path(folder)], Options()))
        left = (model / "config.pbtxt").read_bytes().decode()
        if not any(each.rule == "config-text-is-sound" for each in outcome.report.findings):
            parse_text(left, "config.pbtxt")
        assert len(outcome.done) < 60
