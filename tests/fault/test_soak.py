"""The soak, shortened: what leaks at each request shows in seconds."""

from __future__ import annotations

import pytest

from fault import soak


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_mixed_load_leaves_nothing_behind() -> None:
    """Honest requests are answered right beside hostile clients; descriptors, threads and regions are as before."""
    report = soak.run(20)
    assert not soak.verdict(report), report.text()
