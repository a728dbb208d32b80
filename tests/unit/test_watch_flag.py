"""The flag `--watch`: what it implies, what it does not go with, and what cannot be watched."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path

import pytest

from conch.config.flags import FlagError, parse
from conch.config.server import RepositoryOptions
from conch.repository.watch import watcher


@pytest.mark.parametrize(
    ("flags", "watch", "exits"),
    [
        ((), False, True),
        (("--watch",), True, False),
        (("--watch", "--exit-on-error=true"), True, True),
        (("--watch", "--model-control-mode=explicit"), True, False),
    ],
)
def test_what_it_implies(tmp_path: Path, flags: tuple[str, ...], *, watch: bool, exits: bool) -> None:
    """A server that is watched starts with broken models, unless the operator says otherwise."""
    repository = parse([str(tmp_path), *flags], "conch serve").repository
    assert (repository.watch, repository.exit_on_error) == (watch, exits)


def test_not_together_with_polling(tmp_path: Path) -> None:
    """Two followers of one repository are refused, with what each is good for."""
    with pytest.raises(FlagError, match="--watch and --model-control-mode=poll both follow the repository"):
        parse([str(tmp_path), "--watch", "--model-control-mode=poll"], "conch serve")


class Nobody:
    def load(self, name: str, parameters: object) -> Future[None]:
        raise AssertionError

    def unload(self, name: str, unload_dependents: bool = False) -> Future[None]:
        raise AssertionError

    def wanted(self) -> set[str]:
        return set()


def test_what_cannot_be_watched_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A repository that is no folder here is named; the others are followed, and the end is orderly."""
    with caplog.at_level("INFO", "conch.repository"):
        watching = watcher(RepositoryOptions(paths=(tmp_path, tmp_path / "none"), watch=True), Nobody())
        watching.start()
        watching.begin()
        watching.stop()
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        f"watch: '{tmp_path}/none' is no folder of this machine, its changes are not seen",
        f"watch: following {tmp_path}",
    ]
