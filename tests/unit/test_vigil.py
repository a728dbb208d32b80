"""Nobody sleeps for a moment after a call of a model to another; then everybody may."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import time
import weakref
from pathlib import Path

import numpy as np
import pytest

from conch.backend.python.calling import Call
from conch.backend.python.settings import read_settings
from conch.backend.python.vigil import vigil_of
from conch.types.error import InferError
from support.python_models import model_source, served

pytestmark = pytest.mark.slow


def test_a_vigil_is_kept_for_a_moment_after_the_last_step() -> None:
    """The loop turns without sleeping until the moment is over, and a step meanwhile makes it longer."""

    async def keep() -> tuple[bool, float, bool]:
        vigil = vigil_of(asyncio.get_running_loop())
        begun = time.monotonic()
        vigil.step(200_000_000)
        await asyncio.sleep(0)
        vigil.step(300_000_000)
        kept = vigil.kept
        while vigil.kept:
            await asyncio.sleep(0)
        return kept, time.monotonic() - begun, vigil_of(asyncio.get_running_loop()) is vigil

    kept, lasted, same = asyncio.run(keep())
    assert kept
    assert same
    assert lasted >= 0.3


@pytest.mark.parametrize("text", ["-1", "10001", "fast"])
def test_odd_moments_are_refused(text: str) -> None:
    """The moment is from 0, which is off, to 10 ms."""
    with pytest.raises(InferError, match="call-spin-microseconds"):
        read_settings({"call-spin-microseconds": text})


def test_the_moment_is_a_setting() -> None:
    """200 microseconds unless the operator says otherwise."""
    assert read_settings({}).call_spin == 200
    assert read_settings({"call-spin-microseconds": "0"}).call_spin == 0


def test_a_vigil_keeps_no_loop_alive() -> None:
    """What is known of a loop goes with it."""
    loop = asyncio.new_event_loop()
    vigil_of(loop)
    gone = weakref.ref(loop)
    loop.close()
    del loop
    gc.collect()
    assert gone() is None


def test_only_batches_of_calls_make_a_vigil_longer(tmp_path: Path) -> None:
    """Others are told of it while it lasts, and it ends no later for them."""
    with served(tmp_path, model_source()) as model:
        model.echo()
        instance = model.instance
        instance._launch = dataclasses.replace(instance._launch, spin_ns=200_000)
        steps: list[int] = []

        class Kept:
            kept = True
            step = staticmethod(steps.append)

        instance._vigil = Kept()  # type: ignore[assignment]
        model.echo()
        assert steps == []
        call = model.request(np.ones((1, 2), np.float32))
        call.sink = Call(Answers(), 1, 0, stream=False)  # type: ignore[arg-type]
        assert model.start([call]).wait(60)
        assert steps == [200_000]


class Answers:
    def answer(self, *_: object, final: bool) -> None:
        assert final
