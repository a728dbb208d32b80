"""More models than fit into memory, for seconds; `make budget` does so for two minutes."""

from __future__ import annotations

import pytest

from fault import budget


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_models_take_turns_within_the_budget() -> None:
    """Eight models of which six fit: no request fails, and the memory of all processes stays within the budget."""
    report = budget.run(4, (5, 3), least=400)
    assert not budget.verdict(report, least_cold=1), report.text()
