"""Metrics of models' own: families are shared by name, counted, and shown as Prometheus reads them."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle as Kept
from hypothesis.stateful import RuleBasedStateMachine, consumes, initialize, invariant, rule

from conch.observe.custom import Families, Family, Series
from conch.types.error import InferError

NAMES = ("one", "two", "three")
KINDS = ("counter", "gauge")


class Owners(RuleBasedStateMachine):
    """Any number of owners make and drop families and series; the simple model keeps who holds what."""

    families = Kept("families")
    series = Kept("series")

    @initialize()
    def begin(self) -> None:
        self.page = Families()
        self.kinds: dict[str, tuple[str, int]] = {}
        self.held: dict[tuple[str, str], list[float]] = {}

    @rule(target=families, name=st.sampled_from(NAMES), kind=st.sampled_from(KINDS))
    def family(self, name: str, kind: str) -> Any:
        known, owners = self.kinds.get(name, (kind, 0))
        if known != kind:
            with pytest.raises(InferError):
                self.page.family(name, "text", kind)
            return None
        self.kinds[name] = (kind, owners + 1)
        return self.page.family(name, "text", kind)

    @rule(target=series, family=families, label=st.sampled_from("ab"))
    def make(self, family: Family | None, label: str) -> Any:
        if family is None or family.name not in self.kinds:
            return None
        entry = self.held.setdefault((family.name, label), [0, 0.0])
        entry[0] += 1
        self.kinds[family.name] = (family.kind, self.kinds[family.name][1] + 1)
        # As a worker does: who has a series has its family too.
        return self.page.series(self.page.family(family.name, "text", family.kind), {"l": label}, ())

    @rule(series=series, value=st.integers(0, 9))
    def add(self, series: Series | None, value: int) -> None:
        if series is not None and series.owners:
            series.increment(value)
            self.held[series.family.name, series.labels[0][1]][1] += value

    @rule(series=consumes(series))
    def drop(self, series: Series | None) -> None:
        if series is None:
            return
        name, label = series.family.name, series.labels[0][1]
        self.page.drop_series(series)
        self.held[name, label][0] -= 1
        if not self.held[name, label][0]:
            del self.held[name, label]
        self._drop_family(series.family)

    @rule(family=consumes(families))
    def drop_family(self, family: Family | None) -> None:
        if family is not None:
            self._drop_family(family)

    def _drop_family(self, family: Family) -> None:
        kind, owners = self.kinds[family.name]
        self.page.drop_family(family)
        self.kinds[family.name] = (kind, owners - 1)
        if owners == 1:
            del self.kinds[family.name]

    @invariant()
    def shows_what_is_held(self) -> None:
        if not hasattr(self, "page"):
            return
        shown = dict(re.findall(r'^(\w+\{l="\w"\}) (\S+)$', self.page.render().decode(), re.MULTILINE))
        assert {key: float(value) for key, value in shown.items()} == {
            f'{name}{{l="{label}"}}': total for (name, label), (_, total) in self.held.items()
        }


TestOwners = Owners.TestCase


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=0, max_size=5, unique=True).map(sorted),
    st.lists(st.floats(-1e7, 1e7), max_size=20),
)
def test_buckets_count_what_is_at_most_their_bound(bounds: list[float], values: list[float]) -> None:
    """Each bucket holds the values up to its bound, the last one all of them; no number has an exponent."""
    families = Families()
    series = families.series(families.family("h", "text", "histogram"), {}, bounds)
    for value in values:
        series.observe(value)
    text = families.render().decode()
    counts = [int(count) for count in re.findall(r"^h_bucket\{le=\S+\} (\d+)$", text, re.MULTILINE)]
    assert counts == [sum(value <= bound for value in values) for bound in [*bounds, math.inf]]
    assert f"h_count {len(values)}\n" in text
    assert not re.search(r"\de[+-]?\d", text)


def test_an_infinite_bound_is_the_last_bucket() -> None:
    """There is one line for it, not two."""
    families = Families()
    series = families.series(families.family("h", "text", "histogram"), {}, (1.0, math.inf))
    for value in (0.5, 2.0, math.inf):
        series.observe(value)
    lines = re.findall(r"^h_bucket.*$", families.render().decode(), re.MULTILINE)
    assert lines == ['h_bucket{le="1"} 1', 'h_bucket{le="+Inf"} 3']


@pytest.mark.parametrize("name", ["", "a b", "1a", "__a", "a-b", "\u00e4"])
def test_odd_names_are_refused(name: str) -> None:
    """A name that Prometheus cannot read would spoil the whole page."""
    families = Families()
    with pytest.raises(InferError, match="Invalid metric name"):
        families.family(name, "", "gauge")
    with pytest.raises(InferError, match="Invalid label name"):
        families.series(families.family("fine", "", "gauge"), {name: "x"}, ())
