"""The builder that starts real servers, against a small stand-in for one."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
import pytest

from parity.replay import mask
from support.server import Server, ServerError, free_ports
from support.until import ended, until

STAND_IN = """
import http.server, signal, subprocess, sys

options = dict(a.lstrip("-").split("=", 1) for a in sys.argv[1:] if "=" in a)
if "refuse" in options:
    sys.exit("no such flag")
if "child" in options:
    print("child", subprocess.Popen(["sleep", "60"]).pid, flush=True)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if "never" not in options else 400)
        self.send_header("Content-Length", "0")
        self.end_headers()


signal.signal(signal.SIGTERM, lambda *_: sys.exit(int(options.get("exit", "0"))))
http.server.HTTPServer(("127.0.0.1", int(options["http-port"])), Handler).serve_forever()
"""


def start(tmp_path: Path, *flags: str, timeout: float = 60) -> Server:
    script = tmp_path / "server.py"
    script.write_text(STAND_IN)
    return Server(tmp_path, *flags, command=(sys.executable, str(script)), timeout=timeout)


def test_a_server_that_behaves(tmp_path: Path) -> None:
    """Inside the block the server is ready; after it the process is gone, with exit code 0."""
    with start(tmp_path) as server:
        assert server.process.poll() is None
        assert f"--model-repository={tmp_path}" in server.arguments
    assert server.process.returncode == 0


def test_a_server_that_does_not_start(tmp_path: Path) -> None:
    """The error holds the exit code and what the server said."""
    with pytest.raises(ServerError, match=r"exit code 1\nno such flag"), start(tmp_path, "--refuse=1"):
        pass


def test_a_server_that_is_never_ready(tmp_path: Path) -> None:
    """The wait ends, and so does the server."""
    server = start(tmp_path, "--never=1", timeout=0.5)
    with pytest.raises(ServerError, match="was not among"), server:
        pass
    assert server.process.returncode is not None


def test_a_server_that_stops_badly(tmp_path: Path) -> None:
    """An exit code other than 0 fails the test that stopped the server."""
    with pytest.raises(ServerError, match="exit code 3"), start(tmp_path, "--exit=3"):
        pass


def test_nothing_of_a_server_is_left(tmp_path: Path) -> None:
    """What the server started and forgot is killed with it."""
    with start(tmp_path, "--child=1") as server:
        child = psutil.Process(int(server.log.split()[1]))
    until(lambda: ended(child))


def test_free_ports_differ() -> None:
    """Ports of one server are never the same."""
    assert len(set(free_ports(20))) == 20


def test_mask_hides_only_what_varies() -> None:
    """Times, the server's version and the repository's place are masked; counts, versions and texts are not."""
    answer = {
        "stats": [{"version": "3", "last_inference": 17, "success": {"count": 2, "ns": 900}}],
        "server": {"version": "2.51.0", "extensions": []},
        "error": "At: /tmp/here/m/1/model.py(3)",
        "never": {"last_inference": 0},
    }
    assert mask(answer, {"/tmp/here": "<repository>"}) == {
        "stats": [{"version": "3", "last_inference": "<ms>", "success": {"count": 2, "ns": "<ns>"}}],
        "server": {"version": "<version>", "extensions": []},
        "error": "At: <repository>/m/1/model.py(3)",
        "never": {"last_inference": 0},
    }
