"""A whole server while things go wrong: workers are killed, models are broken, clients leave."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import psutil
import pytest

from support.many import Answers, ask, status
from support.server import Server
from support.until import ended, until

ECHO = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("y", pb_utils.get_input_tensor_by_name(r, "x").as_numpy())])
            for r in requests
        ]
"""
#: Answers when there is no file `hold` beside it.
HELD = ECHO.replace(
    "        return [\n",
    """        import pathlib, time
        while pathlib.Path(__file__).with_name("hold").exists():
            time.sleep(0.01)
        return [
""",
)
CONFIG = """
backend: "{backend}"
max_batch_size: 16
input {{ name: "x" data_type: TYPE_FP32 dims: [ 4 ] }}
output {{ name: "y" data_type: TYPE_FP32 dims: [ 4 ] }}
dynamic_batching {{ }}
"""

pytestmark = pytest.mark.timeout(300)


def write_model(root: Path, name: str, backend: str) -> None:
    (root / name / "1").mkdir(parents=True)
    (root / name / "config.pbtxt").write_text(CONFIG.format(backend=backend))
    if backend == "python":
        (root / name / "1" / "model.py").write_text(ECHO)


def workers(server: Server, model: str) -> list[psutil.Process]:
    """The worker processes of a model, found by what the operator sees in `ps`."""
    found = []
    for process in psutil.Process(server.process.pid).children(recursive=True):
        try:
            if any(model in argument for argument in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def connections(server: Server) -> int:
    """How many HTTP clients are connected."""
    found = psutil.Process(server.process.pid).net_connections("tcp")
    return sum([each.laddr.port == server.http_port and each.status == psutil.CONN_ESTABLISHED for each in found])


async def kill_again_and_again(server: Server, model: str, times: int, load: asyncio.Future[object]) -> int:
    """Kills the model's worker up to `times` times, each time one that serves, while `load` runs."""
    killed: set[int] = set()
    while len(killed) < times and not load.done():
        fresh = [process for process in workers(server, model) if process.pid not in killed]
        if fresh and await status(server.http_port, f"/v2/models/{model}/ready") == 200:
            await asyncio.sleep(0.02)
            fresh[0].send_signal(signal.SIGKILL)
            killed.add(fresh[0].pid)
        await asyncio.sleep(0.02)
    return len(killed)


@pytest.mark.slow
def test_every_request_is_answered_once_while_a_worker_is_killed_ten_times(tmp_path: Path) -> None:
    """10,000 requests on 200 connections: each gets one answer, its own; only those on a killed worker get an error,
    which names the model and the signal; a model beside it does not notice."""
    write_model(tmp_path, "victim", "python")
    write_model(tmp_path, "bystander", "python")
    hit, beside = Answers(), Answers()

    async def run(server: Server) -> int:
        killing: asyncio.Future[int]
        rounds = 0
        killed = 0
        while rounds == 0 or killed < 10:
            load = asyncio.gather(
                ask(server.http_port, "victim", 200, 50, hit), ask(server.http_port, "bystander", 20, 20, beside)
            )
            killing = asyncio.ensure_future(kill_again_and_again(server, "victim", 10 - killed, load))
            await load
            killed += await killing
            rounds += 1
            assert rounds < 30, f"only {killed} workers could be killed"
        return rounds

    with Server(tmp_path) as server:
        rounds = asyncio.run(run(server))
    assert hit.total == rounds * 10_000
    assert hit.wrong == []
    assert set(hit.statuses) <= {200, 500}
    assert hit.errors
    assert all("Stub process 'victim_0' is not healthy" in error for error in hit.errors)
    assert all("SIGKILL" in error for error in hit.errors)
    assert hit.statuses[500] <= 10 * 16 * 2, "no more than the batches on the killed workers may fail"
    assert beside.statuses == {200: rounds * 400}
    assert beside.wrong == []


@pytest.mark.slow
def test_a_thousand_models_load_and_a_broken_one_stops_nobody(tmp_path: Path) -> None:
    """1,000 small models are all ready; broken ones are listed with their reason and the rest is served."""
    for number in range(1000):
        write_model(tmp_path, f"m{number:04}", "identity")
    write_model(tmp_path, "unknown_backend", "no_such_backend")
    (tmp_path / "bad_text" / "1").mkdir(parents=True)
    (tmp_path / "bad_text" / "config.pbtxt").write_text("max_batch_size: eight")
    with Server(tmp_path, "--exit-on-error=false", "--strict-readiness=false", timeout=90) as server:
        answers = Answers()
        asyncio.run(ask(server.http_port, "m0999", 4, 5, answers))
        log = server.log
    assert answers.statuses == {200: 20}
    assert "unable to find backend library for backend 'no_such_backend'" in log
    assert "config.pbtxt:1" in log


@pytest.mark.slow
def test_memory_and_files_do_not_grow_with_requests(tmp_path: Path) -> None:
    """After a warm-up, ten thousand requests more leave no file descriptor and hardly any memory behind."""
    write_model(tmp_path, "echo", "python")
    with Server(tmp_path) as server:
        process = psutil.Process(server.process.pid)
        for _ in range(2):
            asyncio.run(ask(server.http_port, "echo", 50, 100, Answers()))
        until(lambda: connections(server) == 0)
        files, memory = process.num_fds(), process.memory_info().rss
        for _ in range(2):
            asyncio.run(ask(server.http_port, "echo", 50, 100, Answers()))
        until(lambda: process.num_fds() <= files)
        # A kilobyte a request would be ten million.
        assert process.memory_info().rss - memory < 8_000_000


@pytest.mark.slow
def test_stop_answers_what_is_in_flight_and_ends_the_workers(tmp_path: Path) -> None:
    """SIGTERM: requests in flight are answered, the exit code is 0, no process is left."""
    write_model(tmp_path, "held", "python")
    (tmp_path / "held" / "1" / "model.py").write_text(HELD)
    hold = tmp_path / "held" / "1" / "hold"
    hold.touch()
    write_model(tmp_path, "echo", "python")
    answers = Answers()

    async def run(server: Server) -> None:
        load = asyncio.ensure_future(ask(server.http_port, "held", 8, 1, answers))
        # The connections are there, and whoever is answered comes after the requests on them.
        while connections(server) < 8:
            await asyncio.sleep(0.01)
        assert await status(server.http_port, "/v2/health/ready") == 200
        server.signal()
        hold.unlink()
        await load

    with Server(tmp_path) as server:
        children = psutil.Process(server.process.pid).children(recursive=True)
        asyncio.run(run(server))
        assert server.wait() == 0
    assert answers.statuses == {200: 8}
    assert children
    assert all(map(ended, children))
