"""Single mistakes in the text of a config, and what they become."""

from __future__ import annotations

from pathlib import Path

import pytest

from conch.check.subject import Options, Subject
from conch.check.text import read_config

MENDED = {
    'input [ { name: "x" dimz: [ 3 ] } ]': 'input [ { name: "x" dims: [ 3 ] } ]',
    "input [ { data_type: FP32 } ]": "input [ { data_type: TYPE_FP32 } ]",
    'input [ { data_type: "TYPE_FP32" } ]': "input [ { data_type: TYPE_FP32 } ]",
    "input [ { data_type: float64 } ]": "input [ { data_type: TYPE_FP64 } ]",
    "input [ { data_type: TYPE_BYTES } ]": "input [ { data_type: TYPE_STRING } ]",
    "instance_group [ { kind: CPU } ]": "instance_group [ { kind: KIND_CPU } ]",
    'max_batch_size: "8"': "max_batch_size: 8",
    "name: m": 'name: "m"',
    'name "m"': 'name : "m"',
    "max_batch_size = 8": "max_batch_size : 8",
    "dynamic_batching {": "dynamic_batching {\n}",
    "input [ { dims: [3 4] } ]": "input [ { dims: [3, 4] } ]",
    "input [ { dims: [3, 4, ] } ]": "input [ { dims: [3, 4 ] } ]",
    'name: "m\nmax_batch_size: 1': 'name: "m"\nmax_batch_size: 1',
    "name: “m”": 'name: "m"',
    "max_batch_size: 8 }": "max_batch_size: 8 ",
    'parameters { key: "x" value: "y" }': 'parameters { key: "x" value { string_value: "y" } }',
    'parameters { key: "x" value: { string_value: 3 } }': 'parameters { key: "x" value: { string_value: "3" } }',
    "preferred_batch_size: [ 3 ]": "dynamic_batching { preferred_batch_size: [ 3 ] }",
    "dynamic_batching { }\npreferred_batch_size: [ 3 ]": "dynamic_batching { preferred_batch_size: [ 3 ] }\n",
    'input [ { name: "x" max_batch_size: 3 } ]': 'input [ { name: "x" } ]\nmax_batch_size: 3',
    "max_batch_size: 3\nmax_batch_size: 3": "max_batch_size: 3\n",
    "response_cache { enable: yes }": "response_cache { enable: true }",
    'input { name: "x"\noutput { name: "y" }': 'input { name: "x"\n}\noutput { name: "y" }',
    'input [ { name: "x" },\noutput [ { name: "y" } ]': None,
}


@pytest.mark.parametrize(("text", "mended"), MENDED.items(), ids=range(len(MENDED)))
def test_a_mistake_is_mended(text: str, mended: str | None, tmp_path: Path) -> None:
    """In memory at once, and what a fix would write is the same; None: only a person can know."""
    path = tmp_path / "config.pbtxt"
    path.write_text(text)
    subject = Subject("m", tmp_path, Options(), path)
    read_config(subject)
    assert subject.findings
    assert subject.patched is not None
    if mended is None:
        assert subject.written is None
    else:
        assert subject.patched.text == mended
        assert subject.written is not None


@pytest.mark.parametrize("text", ["max_batch_size: 3\nmax_batch_size: 4", "max_batch_size: eight", "name: [ 3", "{}"])
def test_what_could_mean_two_things_stays(text: str, tmp_path: Path) -> None:
    """There is a finding, and no fix that guesses."""
    path = tmp_path / "config.pbtxt"
    path.write_text(text)
    subject = Subject("m", tmp_path, Options(), path)
    read_config(subject)
    assert subject.findings[-1].fix is None


def test_all_mistakes_are_told_of_at_once(tmp_path: Path) -> None:
    """Each where it stands in the file as it is, though the first ones were mended in memory before."""
    path = tmp_path / "config.pbtxt"
    path.write_text('name: m max_batch_size: "8"\ninput [ { name: "x" data_type: FP32 dimz: [ 3, ] } ]\n')
    subject = Subject("m", tmp_path, Options(), path)
    read_config(subject)
    assert [(each.place.line, each.place.column) for each in subject.findings] == [
        (1, 7),
        (1, 25),
        (2, 32),
        (2, 37),
        (2, 48),
    ]
