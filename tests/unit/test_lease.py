"""How long a model's files are kept, and when it is said that they will not be used any more."""

from __future__ import annotations

import pytest

from conch.registry.lease import Lease


def test_files_go_back_when_the_last_holder_is_done() -> None:
    """The load holds them once, each version once more."""
    said: list[str] = []
    lease = Lease(lambda: said.append("release"))
    lease.hold()
    lease.drop()
    assert said == []
    lease.drop()
    assert said == ["release"]


def test_the_end_of_use_is_said_before_the_files_go_back() -> None:
    """Once, when the last version that serves ends its service; another one that was closed long ago does not count."""
    said: list[str] = []
    lease = Lease(lambda: said.append("release"), lambda: said.append("leaves"))
    lease.hold()
    lease.hold()
    lease.drop()
    lease.leave()
    lease.drop()
    assert said == []
    lease.leave()
    assert said == ["leaves"]
    lease.drop()
    assert said == ["leaves", "release"]


def test_a_version_that_leaves_during_its_load_says_nothing() -> None:
    """Whoever loads holds the files still."""
    said: list[str] = []
    lease = Lease(lambda: said.append("release"), lambda: said.append("leaves"))
    lease.hold()
    lease.leave()
    lease.drop()
    lease.drop()
    assert said == ["release"]


def test_errors_of_foreign_code_end_here(caplog: pytest.LogCaptureFixture) -> None:
    """Also one that would end the process."""

    def leave() -> None:
        raise SystemExit(3)

    lease = Lease(leave, leave)
    lease.leave()
    lease.drop()
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]
