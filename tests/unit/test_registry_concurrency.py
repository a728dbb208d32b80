"""Loads, unloads and look-ups at the same time."""

from __future__ import annotations

import random
import threading

import pytest

from conch.types.error import InferError
from support.fake_models import House, scheduler_of

pytestmark = pytest.mark.slow

MODELS = ("a", "b", "c")


def test_look_ups_never_see_a_gap_while_models_are_reloaded() -> None:
    """A model that is only ever reloaded can be found at every moment, and what is found is open."""
    with House() as house:
        for name in MODELS:
            house.store.put(name, 1, 2, config="all")
            house.load(name)
        house.registry.start()
        over = threading.Event()
        gaps: list[Exception] = []

        def look() -> None:
            while not over.is_set():
                for name in MODELS:
                    try:
                        assert house.registry.find(name, "").version == 2
                        assert house.registry.find(name, "1").version == 1
                        house.registry.index(False)
                        house.registry.ready()
                    except (InferError, AssertionError) as error:
                        gaps.append(error)

        lookers = [threading.Thread(target=look) for _ in range(2)]
        for looker in lookers:
            looker.start()
        for turn in range(40):
            for name in MODELS:
                house.store.put(name, 1, 2, config="all", v1=str(turn), v2=str(turn))
            for future in [house.registry.load(name, {}) for name in MODELS]:
                future.result(30)
        over.set()
        for looker in lookers:
            looker.join(30)
        assert gaps == []


@pytest.mark.parametrize("seed", range(5))
def test_everything_made_is_closed_once_whatever_the_order(seed: int) -> None:
    """Loads that fail or not, unloads and overrides in any order from several threads leave nothing open."""
    house = House(load_threads=3)
    house.registry.start()
    for name in MODELS:
        house.store.put(name, 1, 2, config="all")

    def act(thread: int) -> None:
        chance = random.Random(seed * 100 + thread)
        for _ in range(40):
            name = chance.choice(MODELS)
            roll = chance.random()
            if roll < 0.3:
                house.registry.unload(name)
            elif roll < 0.5:
                house.registry.load(name, {"config": "all " + str(roll)})
            elif roll < 0.6:
                house.loader.broken[name, 2] = RuntimeError("boom")
                house.registry.load(name, {})
            else:
                house.loader.broken.pop((name, 2), None)
                house.store.put(name, 1, 2, config="all", v1=str(chance.randrange(3)))
                house.registry.load(name, {})

    threads = [threading.Thread(target=act, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for name in MODELS:
        house.registry.unload(name).result(30)
    assert house.registry.ready_versions() == []
    assert house.registry.stop(30.0)
    assert set(house.loader.times_closed()) <= {1}
    assert all(scheduler_of(served).closed == 1 for served in house.loader.made)
