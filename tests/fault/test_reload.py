"""Reloads under load for seconds; `make reload` does so for five minutes. And what an unload gives back."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from fault import reload
from support import reloading
from support.reloading import ask, load, post, put
from support.server import Server
from support.until import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_nobody_notices_reloads_under_load() -> None:
    """300 requests a second, 14 reloads, half of them broken: no request fails, and nothing is left at the end."""
    report = reload.run(8, 14)
    assert not reload.verdict(report), report.text()


def test_an_unloaded_model_gives_its_memory_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker of a Python model is gone soon, and an ONNX model's 64 MiB are the system's again."""
    monkeypatch.setattr(reloading, "HIDDEN", 1 << 19)
    put(tmp_path, "net", "onnxruntime", 1)
    put(tmp_path, "py", "python", 1)
    with Server(tmp_path, "--model-control-mode=explicit") as server:
        process = psutil.Process(server.process.pid)

        def own() -> int:
            return int(process.memory_info().rss)

        def tree() -> int:
            """Shared pages count in parts."""
            return sum([each.memory_full_info().pss for each in (process, *process.children(recursive=True))])

        for name in ("net", "py"):
            # What the first load of a kind brings (the runtime, threads) stays.
            assert load(server.http_port, name) == (200, None)
            assert ask(server.http_port, name) == 1
            post(server.http_port, f"/v2/repository/models/{name}/unload")
        until(lambda: not process.children())
        quiet, base = own(), tree()
        assert load(server.http_port, "net") == (200, None)
        assert ask(server.http_port, "net") == 1
        assert own() > quiet + 50e6
        post(server.http_port, "/v2/repository/models/net/unload")
        until(lambda: own() < quiet + 12e6)
        assert load(server.http_port, "py") == (200, None)
        assert tree() > base + 10e6
        post(server.http_port, "/v2/repository/models/py/unload")
        until(lambda: not process.children() and tree() < base + 12e6)
