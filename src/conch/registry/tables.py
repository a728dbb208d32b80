"""The tables that the log shows at start-up, as text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest

from conch import TRITON_VERSION
from conch.config.server import ServerOptions


def draw(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table with borders of `+`, `-` and `|`. A cell may have several lines; other control characters are escaped."""
    cells = [[_lines(cell) for cell in row] for row in rows]
    widths = [
        max([len(title), *(len(line) for row in cells for line in row[column])]) for column, title in enumerate(header)
    ]
    border = "+" + "+".join(["-" * (width + 2) for width in widths]) + "+"
    text = [border, _row(header, widths), border]
    for row in cells:
        text += [_row(line, widths) for line in zip_longest(*row, fillvalue="")]
    return "\n".join([*text, border])


def startup(
    wanted: ServerOptions,
    agents: Iterable[tuple[str, str]],
    used: Iterable[tuple[str, str]],
    statuses: Iterable[tuple[str, str, str]],
    extensions: Iterable[str],
    cached: bool,
) -> list[str]:
    """All of them, in Triton's order. `agents` and `used` backends by name and place."""
    repository = wanted.repository
    rows = [
        ("server_id", wanted.id),
        ("server_version", TRITON_VERSION),
        ("server_extensions", " ".join(extensions)),
        *[(f"model_repository_path[{n}]", str(path)) for n, path in enumerate(repository.paths)],
        ("model_control_mode", f"MODE_{repository.control_mode.upper()}"),
        ("strict_model_config", str(int(not repository.auto_complete))),
        ("model_config_name", repository.config_name),
        ("strict_readiness", str(int(repository.strict_readiness))),
        ("exit_timeout", f"{wanted.exit_timeout:g}"),
        ("cache_enabled", str(int(cached))),
    ]
    return [
        draw(("Repository Agent", "Path"), agents),
        backends([(name, place, wanted.backend.get(name, {})) for name, place in used]),
        models(statuses),
        options(rows),
    ]


def models(statuses: Iterable[tuple[str, str, str]]) -> str:
    """Model, version and status, as `Registry.statuses` gives them."""
    return draw(("Model", "Version", "Status"), statuses)


def backends(rows: Iterable[tuple[str, str, Mapping[str, str]]]) -> str:
    """Name, place and settings of the backends in use."""
    return draw(
        ("Backend", "Path", "Config"),
        [
            (name, path, json.dumps({"cmdline": dict(settings)}, separators=(",", ":"), ensure_ascii=False))
            for name, path, settings in rows
        ],
    )


def options(rows: Iterable[tuple[str, str]]) -> str:
    """The server's options and their values."""
    return draw(("Option", "Value"), rows)


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "|" + "|".join([f" {cell:<{width}} " for cell, width in zip(cells, widths, strict=True)]) + "|"


def _lines(cell: str) -> list[str]:
    """A model's own words are shown here: they must not be able to steer the terminal."""
    lines = [
        "".join([c if c.isprintable() else c.encode("unicode_escape").decode() for c in line])
        for line in cell.split("\n")
    ]
    while len(lines) > 1 and not lines[-1]:
        lines.pop()
    return lines
