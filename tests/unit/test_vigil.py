"""Nobody sleeps for a moment after a call of a model to another; then everybody may."""

from __future__ import annotations

import asyncio
import time

import pytest

from conch.backend.python.settings import read_settings
from conch.backend.python.vigil import vigil_of
from conch.types.error import InferError


def test_a_vigil_is_kept_for_a_moment_after_the_last_step() -> None:
    """The loop turns without sleeping until the moment is over, and a step meanwhile makes it longer."""

    async def keep() -> tuple[bool, float, bool]:
        vigil = vigil_of(asyncio.get_running_loop())
        begun = time.monotonic()
        vigil.step(20_000_000)
        await asyncio.sleep(0)
        vigil.step(30_000_000)
        kept = vigil.kept
        while vigil.kept:
            await asyncio.sleep(0)
        return kept, time.monotonic() - begun, vigil_of(asyncio.get_running_loop()) is vigil

    kept, lasted, same = asyncio.run(keep())
    assert kept
    assert same
    assert lasted >= 0.03


@pytest.mark.parametrize("text", ["-1", "10001", "fast"])
def test_odd_moments_are_refused(text: str) -> None:
    """The moment is from 0, which is off, to 10 ms."""
    with pytest.raises(InferError, match="call-spin-microseconds"):
        read_settings({"call-spin-microseconds": text})


def test_the_moment_is_a_setting() -> None:
    """200 microseconds unless the operator says otherwise."""
    assert read_settings({}).call_spin == 200
    assert read_settings({"call-spin-microseconds": "0"}).call_spin == 0
