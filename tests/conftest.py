"""Makes the shared builders (`support`) and the benchmark's modules importable by the tests."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

TESTS = Path(__file__).parent
for place in (TESTS, TESTS.parent / "bench"):
    if str(place) not in sys.path:
        sys.path.insert(0, str(place))
# bench/triton is no package: libraries that look for the compiler of that name (PyTorch) would take it for one.
sys.modules.setdefault("triton", None)  # type: ignore[arg-type]

# Whoever runs the tests in the background of a script has them ignore Ctrl-C, and all that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says something of the machine alone. The rest is Hypothesis' own choice, which under CI is
# the same examples every time.
settings.register_profile(
    "patient", settings.get_profile(settings.get_current_profile_name()), deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)  # fmt: skip
settings.load_profile("patient")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked `gpu` run where there is one, and say elsewhere why they do not."""
    if item.get_closest_marker("gpu") is not None:
        from support.gpu import missing

        if reason := missing():
            pytest.skip(f"needs a GPU: {reason}")


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes are named by their place: what a compressor makes differs from second to second, and names are compared."""
    return argname if isinstance(val, bytes | bytearray) else None
