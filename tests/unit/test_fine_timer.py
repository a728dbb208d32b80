"""The timer behind queue delays and deadlines."""

from __future__ import annotations

import asyncio
import time
import weakref

from conch.schedule.timer import FineTimer


def test_alarms_ring_in_order_and_not_too_early() -> None:
    """Whatever the order of setting, calls come in the order of their times, none before its time."""

    async def run() -> list[tuple[str, float]]:
        timer = FineTimer(asyncio.get_running_loop())
        rang: list[tuple[str, float]] = []
        done = asyncio.Event()
        begun = time.monotonic()
        for name, seconds in (("c", 0.6), ("a", 0.0002), ("b", 0.3)):
            timer.later(seconds, lambda name=name: rang.append((name, time.monotonic() - begun)))
        timer.later(0.7, done.set)
        await done.wait()
        timer.close()
        return rang

    rang = asyncio.run(run())
    assert [name for name, _ in rang] == ["a", "b", "c"]
    assert all(at >= least for (_, at), least in zip(rang, (0.0002, 0.3, 0.6), strict=True))


def test_cancelled_and_past_alarms() -> None:
    """A cancelled alarm does not ring; one whose time is past rings at once."""

    async def run() -> list[str]:
        timer = FineTimer(asyncio.get_running_loop())
        rang: list[str] = []
        done = asyncio.Event()
        timer.later(0.001, lambda: rang.append("cancelled")).cancel()
        timer.later(-1.0, lambda: rang.append("past"))
        timer.later(0.01, done.set)
        await done.wait()
        timer.close()
        timer.close()
        return rang

    assert asyncio.run(run()) == ["past"]


def test_an_alarm_may_set_another() -> None:
    """Calls made by an alarm may use the timer, also for a time before all others."""

    async def run() -> int:
        timer = FineTimer(asyncio.get_running_loop())
        done = asyncio.Event()
        count = 0

        def again() -> None:
            nonlocal count
            count += 1
            if count < 50:
                timer.later(0.0, again)
            else:
                done.set()

        timer.later(10.0, lambda: None)
        timer.later(0.0, again)
        await done.wait()
        timer.close()
        return count

    assert asyncio.run(run()) == 50


def test_cancelled_alarms_do_not_pile_up() -> None:
    """Alarms for far-off times that are cancelled leave nothing behind, neither themselves nor whom they would call."""

    class Waiting:
        def ring(self) -> None:
            """Never called."""

    async def run() -> tuple[int, object]:
        timer = FineTimer(asyncio.get_running_loop())
        waiting = Waiting()
        gone = weakref.ref(waiting)
        timer.later(3600.0, lambda: None)
        for _ in range(10_000):
            timer.later(3600.0, waiting.ring).cancel()
        del waiting
        left = len(timer._alarms)
        timer.close()
        return left, gone()

    left, waiting = asyncio.run(run())
    assert left < 200
    assert waiting is None


def test_a_call_that_raises_does_not_stop_the_others() -> None:
    """Whoever waits for a later time is still called."""

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        timer = FineTimer(asyncio.get_running_loop())
        done = asyncio.Event()

        def fail() -> None:
            raise ValueError("a bug")

        timer.later(0.0001, fail)
        timer.later(0.02, done.set)
        await asyncio.wait_for(done.wait(), 60)
        timer.close()

    asyncio.run(run())
