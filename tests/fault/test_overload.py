"""Three times the load that a model can bear, for seconds; `make overload` does so for a minute."""

from __future__ import annotations

import pytest

from fault import overload


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_overload_is_refused_and_the_rest_is_done() -> None:
    """Nothing refused is executed, every refusal says when to come again, memory is bounded, the model keeps busy."""
    report = overload.run(3)
    # On a machine that does other things besides, the share says hardly anything; a minute of quiet says more.
    assert not overload.verdict(report, least_goodput=0.1), report.text()
