"""docs/environments.md: its commands work, its config is one, its settings are those there are."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from conch.config.environments import SETTINGS, environment_options
from conch.config.pbtxt import parse_text
from support.environments import UV
from support.python_models import array_of, model_source, served

PAGE = (Path(__file__).parent.parent.parent / "docs" / "environments.md").read_text()


@pytest.mark.slow
def test_the_commands_make_an_environment(tmp_path: Path) -> None:
    """A reader who follows them, and copies the parameter, has a model with a package of its own."""
    (commands,) = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    (parameter,) = re.findall(r"```\n(parameters .*?)```", PAGE, re.DOTALL)
    folder = tmp_path / "m"
    folder.mkdir()
    # As the page has it, only quicker.
    commands = commands.replace("-m venv", "-m venv --without-pip")
    commands = commands.replace("env/bin/pip install", f"{UV} pip install --python env/bin/python")
    # Files that are linked to uv's cache change for tar whenever somebody else links them.
    subprocess.run(["bash", "-ec", commands], cwd=folder, check=True, env={**os.environ, "UV_LINK_MODE": "copy"})
    config = parse_text(f'name: "m" max_batch_size: 8 {parameter}', "config.pbtxt")
    execute = "import packaging\nreturn [answer(np.array([packaging.__version__], dtype=object))]"
    settings = {"environment-cache": str(tmp_path / "cache")}
    with served(tmp_path, model_source(execute), config=config, settings=settings) as model:
        assert array_of(model.echo().outputs[0]).tolist() == [b"21.3"]


def test_the_settings_are_those_there_are() -> None:
    """Every one is on the page, with its default."""
    rows = dict(re.findall(r"\| `(environment[a-z-]*)=[^`]*` \| `?([^|`]*)`? \|", PAGE))
    assert rows.keys() == SETTINGS
    options = environment_options({}, {"HOME": "~"})
    assert (rows["environment-keep"].strip(), rows["environment-keep-days"].strip()) == (
        str(options.keep), str(options.keep_days)
    )  # fmt: skip
    assert rows["environment-cache"] == "~/.cache/conch/environments"
    assert rows["environments"] == "auto"
