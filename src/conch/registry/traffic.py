"""Which arm of a traffic route answers a request: pure decisions, no clock, no models.

Arms are known by their numbers in the route. `Choice` is told which of them are ready.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from itertools import cycle
from typing import Final, Generic, TypeVar

#: Cycles of turns up to this length are worked out once.
_SHORT: Final = 1024
_MASK: Final = (1 << 64) - 1
#: Flags of a request: it begins, it ends a sequence.
START, END = 1, 2

T = TypeVar("T")


class Split:
    """Turns by weight: after n of them, member i has had n * weight[i] / sum(weights), less than one more or less.

    The k-th turn of a member falls between k / share and (k + 1) / share; of those that may have a turn, the one goes
    first that must have it first. For one turn at a time and shares that add up to one, nobody is ever late (earliest
    deadline first is optimal; Baruah et al., "Proportionate progress", 1996).
    """

    def __init__(self, weights: Sequence[float | Fraction]) -> None:
        """At least one weight is above 0; those at 0 have no turns."""
        exact = [Fraction(str(weight)) for weight in weights]
        scale = math.lcm(*[each.denominator for each in exact])
        whole = [int(each * scale) for each in exact]
        divisor = math.gcd(*whole)
        self._weights = [(number, weight // divisor) for number, weight in enumerate(whole) if weight]
        self._total = sum(weight for _, weight in self._weights)
        self._had = [0] * len(weights)
        self._turn = 0
        turns = self._decisions()
        #: Whether several threads may ask for the `next` at the same time.
        self.shared = self._total <= _SHORT
        # After `total` turns everybody has had exactly what is due, and it begins again.
        endless = cycle([next(turns) for _ in range(self._total)]) if self.shared else turns
        #: Whose turn it is.
        self.next: Callable[[], int] = endless.__next__

    def _decisions(self) -> Iterator[int]:
        while True:
            yield self._decide()

    def _decide(self) -> int:
        turn, total, had = self._turn, self._total, self._had
        chosen, soonest = -1, 0
        for number, weight in self._weights:
            if had[number] * total // weight <= turn:
                deadline = -(-(had[number] + 1) * total // weight)
                if chosen < 0 or deadline < soonest:
                    chosen, soonest = number, deadline
        had[chosen] += 1
        self._turn = turn + 1
        if self._turn == total:
            self._turn = 0
            self._had = [0] * len(had)
        return chosen


def seed_of(name: str) -> int:
    """What tells an arm from others when keys are shared out; the same in every process."""
    return _mix(zlib.crc32(name.encode()) + 1)


def place_of(key: str) -> int:
    """Where a key stands among all keys, as a number of 64 bits; the same in every process."""
    return _mix(zlib.crc32(key.encode("utf-8", "surrogatepass")))


def owner(place: int, arms: Sequence[tuple[int, int, float]]) -> int:
    """The arm that a key belongs to, of (number, seed, weight above 0).

    Weighted rendezvous hashing: each arm has a score for the key that depends on nothing but the two and the arm's own
    weight, and the best one has it. So when a weight grows, keys move to that arm and between no others.
    """
    best, chosen = -1.0, -1
    for number, seed, weight in arms:
        # In (0, 1]; never 1 itself, where the logarithm is 0.
        chance = (_mix(place ^ seed) >> 11) * 2.0**-53
        score = weight / -math.log(chance or 2.0**-60)
        if score > best:
            best, chosen = score, number
    return chosen


def _mix(number: int) -> int:
    """The finaliser of splitmix64 (Steele et al., 2014): every bit of the result depends on every bit given."""
    number = (number + 0x9E3779B97F4A7C15) & _MASK
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & _MASK
    return number ^ (number >> 31)


def _nobody() -> int:
    return -1


class Choice:
    """The arms of one route, of which those that are `settle`d share all requests by weight."""

    def __init__(self, names: Sequence[str], weights: Sequence[float]) -> None:
        """Nothing is ready before `settle`."""
        self._weights = tuple(weights)
        self._seeds = tuple([seed_of(name) for name in names])
        self._split: Split | None = None
        #: The arm whose turn it is; -1 where none is ready. One thread at a time, unless `shared`.
        self.next: Callable[[], int] = _nobody
        self.shared = True
        self._arms: tuple[tuple[int, int, float], ...] = ()
        self.ready: tuple[int, ...] = ()
        #: Grows with each change of what is ready: what was picked for a key under an older one may be another's now.
        self.epoch = 0

    def settle(self, ready: Sequence[int]) -> None:
        """From now on these arms, and no others, are picked: their weights shared anew. Those at weight 0 never are."""
        able = tuple([number for number in ready if self._weights[number]])
        if able == self.ready and self._split is not None:
            return
        self.ready = able
        self._arms = tuple([(number, self._seeds[number], self._weights[number]) for number in able])
        weights = [weight if number in able else 0 for number, weight in enumerate(self._weights)]
        split = self._split = Split(weights) if able else None
        self.shared, self.next = (True, _nobody) if split is None else (split.shared, split.next)
        self.epoch += 1

    def of(self, key: str) -> int:
        """The arm that `key` sticks to; -1 where none is ready."""
        return owner(place_of(key), self._arms)


class Pins(Generic[T]):
    """Where sequences are that have begun and not ended. Of too many the one unheard of for the longest time is
    forgotten."""

    def __init__(self, most: int = 65_536) -> None:
        self._most = most
        self._places: dict[int | str, T] = {}

    def __len__(self) -> int:
        return len(self._places)

    def find(self, sequence: int | str, flags: int) -> T | None:
        """Where the request's sequence is; None for one that begins, or that nobody has heard of."""
        return None if flags & START else self._places.get(sequence)

    def note(self, sequence: int | str, flags: int, place: T) -> None:
        """The request has gone to `place`."""
        self._places.pop(sequence, None)
        if flags & END:
            return
        self._places[sequence] = place
        if len(self._places) > self._most:
            del self._places[next(iter(self._places))]
