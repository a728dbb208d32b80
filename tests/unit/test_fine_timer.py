"""The timer behind queue delays and deadlines."""

from __future__ import annotations

import asyncio
import time

from conch.schedule.timer import FineTimer


def test_alarms_ring_in_order_and_not_too_early() -> None:
    """Whatever the order of setting, calls come in the order of their times, none before its time."""

    async def run() -> list[tuple[str, float]]:
        timer = FineTimer(asyncio.get_running_loop())
        rang: list[tuple[str, float]] = []
        done = asyncio.Event()
        begun = time.monotonic()
        for name, seconds in (("c", 0.02), ("a", 0.0002), ("b", 0.005)):
            timer.later(seconds, lambda name=name: rang.append((name, time.monotonic() - begun)))
        timer.later(0.03, done.set)
        await done.wait()
        timer.close()
        return rang

    rang = asyncio.run(run())
    assert [name for name, _ in rang] == ["a", "b", "c"]
    assert all(at >= least for (_, at), least in zip(rang, (0.0002, 0.005, 0.02), strict=True))


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
