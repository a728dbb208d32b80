"""What is told of exceptions that other people's code raises."""

from __future__ import annotations

import pytest

from conch.types.error import Code, foreign, not_found


class MuteError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("it broke"), "ValueError: it broke"),
        (KeyError("k"), "KeyError: 'k'"),
        (OSError(), "OSError"),
        (MuteError(), "MuteError"),
    ],
)
def test_type_and_text_where_there_is_one(error: BaseException, text: str) -> None:
    """Also of an exception that cannot be shown."""
    told = foreign(error)
    assert (told.code, told.message) == (Code.INTERNAL, text)


def test_our_own_are_told_as_they_are() -> None:
    error = not_found("it is not there")
    assert foreign(error) is error
