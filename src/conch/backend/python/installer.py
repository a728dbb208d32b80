"""Makes a Python environment with packages in it: with uv where there is one, else with venv and pip."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from conch.backend.python.requirements import Requirements, hidden, offending
from conch.config.environments import EnvironmentOptions, find_uv, without_python
from conch.types.error import InferError, internal

_LOG = logging.getLogger("conch.backend")
#: What a worker needs of every environment.
BASE: Final = "numpy"
_LAST_LINES: Final = 20
_NO_NETWORK: Final = re.compile(
    r"name resolution|dns error|error sending request|failed to establish a new connection|network is unreachable"
    r"|connection refused|could not connect|tcp connect error|network connectivity is disabled|offline mode"
    r"|Failed to fetch: `",
    re.IGNORECASE,
)


def install(
    requirements: Requirements, options: EnvironmentOptions, folder: Path, lock: int, about: str, uv: str | None = None
) -> None:
    """Make the environment in `folder`. What the installer says goes to the log. `uv` is the program, empty to do
    without. Raises InferError."""
    uv = find_uv() if uv is None else uv
    file = folder.parent / "requirements.txt"
    wanted = requirements.text if requirements.names(BASE) else f"{requirements.text}{BASE}\n"
    file.write_text(wanted, encoding="utf-8")
    for command in commands(uv, folder, file, options):
        code, lines = run(command, folder.parent, lock, lambda line: _LOG.info("%s: %s", about, line))
        if code:
            raise failure(about, command[0], code, lines, requirements, options)


def commands(uv: str, folder: Path, file: Path, options: EnvironmentOptions) -> list[list[str]]:
    """What is run, one after another."""
    python = str(folder / "bin" / "python")
    places = [
        *([f"--index-url={options.index}"] if options.index else []),
        *([f"--extra-index-url={options.extra_index}"] if options.extra_index else []),
        *([f"--find-links={options.find_links}"] if options.find_links else []),
    ]
    if uv:
        offline = ["--offline"] if options.offline else []
        plain = ["--color=never", "--no-progress"]
        return [
            [uv, "venv", "--quiet", *plain, *offline, "--python", sys.executable, str(folder)],
            [uv, "pip", "install", *plain, *offline, *places, "--python", python, "-r", str(file)],
        ]
    offline = ["--no-index"] if options.offline else []
    pip = ["-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--no-color", "--progress-bar=off"]
    return [
        [sys.executable, "-m", "venv", str(folder)],
        [python, *pip, *offline, *places, "-r", str(file)],
    ]


def run(command: Sequence[str], folder: Path, lock: int, say: Callable[[str], object]) -> tuple[int, Sequence[str]]:
    """Run to the end, in `folder`; the exit code and the last lines. The lock is held as long as it runs."""
    last: deque[str] = deque(maxlen=_LAST_LINES)
    with subprocess.Popen(  # noqa: S603  the operator's own programs
        command,
        cwd=folder,
        env=without_python(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=[lock],
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            shown = hidden(line.rstrip())
            if shown:
                last.append(shown)
                say(shown)
    return process.returncode, last


def failure(
    about: str,
    program: str,
    code: int,
    lines: Sequence[str],
    requirements: Requirements,
    options: EnvironmentOptions,
) -> InferError:
    """Why, in the installer's own words, and which requirement it is about."""
    tool = "uv" if Path(program).name == "uv" else "pip"
    text = "\n".join(lines)
    blamed = offending(requirements.wanted, lines)
    named = f" (it complains of {', '.join(map(hidden, blamed))})" if blamed else ""
    off = "--backend-config=python,environments=off lets the model run without"
    if options.offline:
        hint = (
            "environment-offline=true takes nothing from the network: put wheels of all that is needed into the folder "
            f"that environment-find-links names, or pack the environment and name it in EXECUTION_ENV_PATH; {off}"
        )
    elif _NO_NETWORK.search(text):
        hint = (
            "the package index cannot be reached from here: name another with --backend-config=python,"
            "environment-index=URL, or a folder of wheels with environment-find-links=DIR, or pack the environment "
            f"and name it in EXECUTION_ENV_PATH; {off}"
        )
    else:
        hint = f"mend '{requirements.source}'; {off}"
    return internal(
        f"{about}: the Python environment for '{requirements.source}' cannot be made, {tool} ended with exit code "
        f"{code}{named}. Its last lines:\n{text}",
        hint,
    )
