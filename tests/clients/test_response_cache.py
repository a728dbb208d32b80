"""The response cache of a server process, with unmodified clients."""

from __future__ import annotations

import http.client
import json
import os
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
import tritonclient.utils.shared_memory as shm

from support.python_models import HEAD
from support.redis_server import RedisServer, needs_redis
from support.server import TRITONSERVER, Server
from support.until import until

pytestmark = pytest.mark.slow

#: Y is X and a count of executions; X of 1 and above waits for the file `go` in the model's folder.
MODEL = (
    HEAD
    + """
    def initialize(self, args):
        self.place = args["model_repository"]
        self.count = 0
        self.begun = ADDED

    def execute(self, requests):
        responses = []
        for request in requests:
            x = request.inputs()[0].as_numpy()
            self.count += 1
            if x.flat[0] >= 1:
                open(os.path.join(self.place, "begun%d" % self.count), "w").close()
                while not os.path.exists(os.path.join(self.place, "go")):
                    time.sleep(0.002)
            responses.append(answer(x + self.begun + self.count))
        return responses
"""
)
CONFIG = """
backend: "python"
max_batch_size: 8
input { name: "X" data_type: TYPE_FP32 dims: -1 }
output { name: "Y" data_type: TYPE_FP32 dims: -1 }
response_cache { enable: true }
"""
IN_ORDER = CONFIG + "dynamic_batching { preserve_ordering: true }\n"
FLAGS = ("--cache-config=local,size=10000000", "--model-control-mode=explicit", "--load-model=*",
         "--allow-client-shm=true")  # fmt: skip


def write(root: Path, name: str, config: str = CONFIG, added: int = 0) -> None:
    (root / name / "1").mkdir(parents=True, exist_ok=True)
    (root / name / "config.pbtxt").write_text(config)
    (root / name / "1" / "model.py").write_text(MODEL.replace("ADDED", str(added)))


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repository")
    for name in ("m", "large", "shared", "reloaded", "together", "left", "streamed"):
        write(root, name)
    write(root, "ordered", IN_ORDER)
    return root


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[Server]:
    with Server(repository, *FLAGS) as running:
        yield running


def ask(kind: Any, server: Server, model: str, *values: float, **more: Any) -> np.ndarray[Any, Any]:
    """The answer's values; each number of values is a question of its own."""
    with kind.InferenceServerClient(server.http if kind is httpclient else server.grpc) as client:
        tensor = kind.InferInput("X", [1, len(values)], "FP32")
        tensor.set_data_from_numpy(np.array([values], np.float32))
        result = client.infer(model, [tensor], **more).as_numpy("Y")
        assert result is not None
        return result[0]


def counts(server: Server, model: str) -> dict[str, int]:
    with httpclient.InferenceServerClient(server.http) as client:
        (stats,) = client.get_inference_statistics(model)["model_stats"]
    times = {name: each["count"] for name, each in stats["inference_stats"].items()}
    return {**times, "executions": stats["execution_count"]}


def pending(server: Server, model: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", server.metrics_port, timeout=60)
    connection.request("GET", "/metrics")
    page = connection.getresponse().read().decode()
    connection.close()
    name = f'nv_inference_pending_request_count{{model="{model}",version="1"}} '
    return int(next(line for line in page.splitlines() if line.startswith(name)).removeprefix(name))


def test_all_protocols_share_it(server: Server) -> None:
    """What was asked over one protocol is known to the other; each answer has its own request's id."""
    answers = [
        ask(kind, server, "m", 0.5, 0.25, request_id=str(n)) for n, kind in enumerate((httpclient, grpcclient) * 2)
    ]
    assert [list(each) for each in answers] == [[1.5, 1.25]] * 4
    found = counts(server, "m")
    assert (found["success"], found["cache_hit"], found["cache_miss"], found["executions"]) == (4, 3, 1, 1)


def test_large_answers_are_copies(server: Server) -> None:
    """An answer that came in a worker's memory stays what it was when the worker goes on."""
    values = np.linspace(0, 0.9, 200_000, dtype=np.float32)
    first = ask(grpcclient, server, "large", *values)
    for n in range(4):
        ask(grpcclient, server, "large", *values[: -n - 1])
    again = ask(grpcclient, server, "large", *values)
    assert np.array_equal(again, first)
    assert counts(server, "large")["cache_hit"] == 1


def test_hits_go_to_shared_memory(server: Server) -> None:
    """Where an answer is delivered to is no part of the question."""
    want = ask(httpclient, server, "shared", 0.5)
    region = shm.create_shared_memory_region("out", f"/conch_cache_{os.getpid()}", 64)
    try:
        with httpclient.InferenceServerClient(server.http) as client:
            client.register_system_shared_memory("out", f"/conch_cache_{os.getpid()}", 64)
            tensor = httpclient.InferInput("X", [1, 1], "FP32")
            tensor.set_data_from_numpy(np.array([[0.5]], np.float32))
            output = httpclient.InferRequestedOutput("Y")
            output.set_shared_memory("out", 4)
            client.infer("shared", [tensor], outputs=[output])
            client.unregister_system_shared_memory("out")
        assert shm.get_contents_as_numpy(region, np.float32, [1])[0] == want[0]
    finally:
        shm.destroy_shared_memory_region(region)
    assert counts(server, "shared")["cache_hit"] == 1


def test_a_reload_with_other_files_forgets(server: Server, repository: Path) -> None:
    """A new model.py has new answers; a reload that changes nothing keeps them."""
    with httpclient.InferenceServerClient(server.http) as client:
        assert ask(httpclient, server, "reloaded", 0.5) == [1.5]
        client.load_model("reloaded")
        assert counts(server, "reloaded")["success"] == 1
        write(repository, "reloaded", added=10)
        client.load_model("reloaded")
        assert ask(httpclient, server, "reloaded", 0.5) == [11.5]
        client.unload_model("reloaded")
        until(lambda: not client.is_model_ready("reloaded"))
        client.load_model("reloaded")
        assert ask(httpclient, server, "reloaded", 0.5) == [11.5]
        assert counts(server, "reloaded")["cache_hit"] == 1


def test_the_same_question_is_executed_once(server: Server, repository: Path) -> None:
    """Clients that ask the same at the same time get the answer of one execution, each under its own id."""
    with ThreadPoolExecutor(8) as threads:
        asked = [
            threads.submit(ask, kind, server, "together", 1.5, request_id=str(n))
            for n, kind in enumerate((httpclient, grpcclient) * 4)
        ]
        until((repository / "together" / "begun1").exists)
        until(lambda: pending(server, "together") == 7)
        (repository / "together" / "go").touch()
        assert [list(each.result(60)) for each in asked] == [[2.5]] * 8
    found = counts(server, "together")
    assert (found["success"], found["cache_hit"], found["cache_miss"], found["executions"]) == (8, 7, 1, 1)


def test_a_leader_that_leaves_takes_nobody_along(server: Server, repository: Path) -> None:
    """The client whose request is executed goes away; those who wait for the same answer get it."""
    left = threading.Event()

    def leave(result: Any, error: Any) -> None:
        left.set()

    with grpcclient.InferenceServerClient(server.grpc) as client, ThreadPoolExecutor(2) as threads:
        tensor = grpcclient.InferInput("X", [1, 1], "FP32")
        tensor.set_data_from_numpy(np.array([[1.25]], np.float32))
        leader = client.async_infer("left", [tensor], leave)
        until((repository / "left" / "begun1").exists)
        follower = threads.submit(ask, httpclient, server, "left", 1.25)
        until(lambda: pending(server, "left") == 1)
        leader.cancel()
        assert left.wait(60)
        (repository / "left" / "go").touch()
        assert follower.result(60)[0] in (2.25, 3.25)


def test_hits_keep_the_order(server: Server, repository: Path) -> None:
    """With preserve_ordering a remembered answer does not overtake one that is being made."""
    known = ask(httpclient, server, "ordered", 0.5)
    done: list[str] = []
    with ThreadPoolExecutor(2) as threads:
        slow = threads.submit(ask, httpclient, server, "ordered", 1.5)
        slow.add_done_callback(lambda _: done.append("slow"))
        until((repository / "ordered" / "begun2").exists)
        hit = threads.submit(ask, httpclient, server, "ordered", 0.5)
        until(lambda: counts(server, "ordered")["cache_hit"] == 1)
        assert not hit.done()
        (repository / "ordered" / "go").touch()
        assert hit.result(60)[0] == known[0]
        assert slow.result(60)[0] == 3.5


def test_a_cache_that_cannot_be_made_stops_the_start(repository: Path) -> None:
    """The server ends with exit code 1 and Triton's text."""
    started = Server(repository, "--cache-config=local,sizes=5", command=TRITONSERVER)
    try:
        assert started.wait() == 1
        assert (
            "error: creating server: Invalid argument - Failed to initialize LocalCache: config didn't contain a valid "
            "'size' field." in started.log
        )
    finally:
        started.close()


def test_without_a_cache_the_model_just_runs(repository: Path) -> None:
    """`response_cache` in a config is for servers that have a cache, as in Triton; nothing is warned of."""
    with Server(repository, "--model-control-mode=explicit", "--load-model=m") as plain:
        assert [list(ask(httpclient, plain, "m", 0.5)) for _ in range(2)] == [[1.5], [2.5]]
        assert "response_cache" not in plain.log


def write_identity(root: Path) -> None:
    """A model that starts at once: its statistics say whether it was executed."""
    (root / "m" / "1").mkdir(parents=True)
    (root / "m" / "config.pbtxt").write_text(CONFIG.replace('"python"', '"identity"'))


@needs_redis
def test_servers_share_a_redis_that_comes_and_goes(tmp_path: Path) -> None:
    """Two servers answer from one Redis; while it is away, or holds garbage, models run; then it is used again."""
    write_identity(tmp_path)
    # However slowly this Redis answers, it is there.
    patience = [f"--cache-config=redis,{name}=60000" for name in ("socket_timeout", "wait_timeout")]
    with (
        RedisServer() as redis,
        Server(tmp_path, *redis.flags, *patience) as one,
        Server(tmp_path, *redis.flags, *patience) as two,
    ):
        assert ask(httpclient, one, "m", 0.5) == [0.5]
        until(lambda: bool(redis.client().keys()))
        assert ask(grpcclient, two, "m", 0.5) == [0.5]
        assert (counts(two, "m")["cache_hit"], counts(two, "m")["executions"]) == (1, 0)
        (key,) = redis.client().keys()
        redis.client().set(key, b"garbage")
        assert ask(httpclient, two, "m", 0.5) == [0.5]
        assert counts(two, "m")["executions"] == 1
        redis.stop()
        assert [ask(httpclient, one, "m", 0.25 * n) for n in range(1, 4)] == [[0.25], [0.5], [0.75]]
        assert counts(one, "m")["executions"] == 4
        until(lambda: "cannot read Redis" in one.log or "cannot write Redis" in one.log)
        assert one.log.count("cannot read Redis") + one.log.count("cannot write Redis") == 1
        redis.start()
        until(lambda: ask(httpclient, one, "m", 0.125)[0] == 0.125 and counts(one, "m")["cache_hit"] > 0)
        until(lambda: "can read Redis again" in one.log or "can write Redis again" in one.log)


@needs_redis
def test_a_redis_that_hangs_costs_a_moment(tmp_path: Path) -> None:
    """A Redis that takes connections and says nothing is a miss after the time-out, and left alone for a while."""
    write_identity(tmp_path)
    with RedisServer() as redis, Server(tmp_path, *redis.flags, "--cache-config=redis,socket_timeout=50") as server:
        ask(httpclient, server, "m", 0.5)
        with redis.client() as client:
            client.execute_command("CLIENT", "PAUSE", 60_000)
        assert [ask(httpclient, server, "m", 0.25)[0] for _ in range(5)] == [0.25] * 5
        found = counts(server, "m")
        assert (found["executions"], found["cache_hit"]) == (6, 0)
        until(lambda: "the response cache cannot" in server.log)


def test_metrics_are_those_of_models_with_a_cache(server: Server) -> None:
    """The numbers of the page are those of the statistics."""
    ask(httpclient, server, "m", 0.75)
    ask(httpclient, server, "m", 0.75)
    found = counts(server, "m")
    connection = http.client.HTTPConnection("127.0.0.1", server.metrics_port, timeout=60)
    connection.request("GET", "/metrics")
    page = connection.getresponse().read().decode()
    connection.close()
    for name, value in (("hits", found["cache_hit"]), ("misses", found["cache_miss"])):
        assert f'nv_cache_num_{name}_per_model{{model="m",version="1"}} {value}\n' in page
    for name in ("util", "num_entries", "num_hits", "num_misses", "num_lookups", "num_evictions", "lookup_duration",
                 "insertion_duration"):  # fmt: skip
        assert f"\nnv_cache_{name} " in page


def test_streams_and_generate_hit(server: Server) -> None:
    """A stream of equal requests is answered request by request, in order; generate asks the same question too."""
    replies: queue.Queue[Any] = queue.Queue()
    with grpcclient.InferenceServerClient(server.grpc) as client:
        client.start_stream(lambda result, error: replies.put((result, error)))
        tensor = grpcclient.InferInput("X", [1, 1], "FP32")
        tensor.set_data_from_numpy(np.array([[0.5]], np.float32))
        for n in range(20):
            client.async_stream_infer("streamed", [tensor], request_id=str(n))
        answers = [replies.get(timeout=60) for _ in range(20)]
        client.stop_stream()
    assert [error for _, error in answers] == [None] * 20
    assert [result.get_response().id for result, _ in answers] == [str(n) for n in range(20)]
    assert {float(result.as_numpy("Y")[0, 0]) for result, _ in answers} == {1.5}
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=60)
    connection.request("POST", "/v2/models/streamed/generate", json.dumps({"X": 0.5}))
    assert json.loads(connection.getresponse().read())["Y"] == 1.5
    connection.close()
    assert counts(server, "streamed")["executions"] == 1


ENSEMBLE = """
platform: "ensemble"
max_batch_size: 8
input { name: "A" data_type: TYPE_FP32 dims: -1 }
output { name: "B" data_type: TYPE_FP32 dims: -1 }
ensemble_scheduling {
  step { model_name: "step" model_version: -1 input_map { key: "X" value: "A" } output_map { key: "Y" value: "B" } }
}
response_cache { enable: true }
"""


def test_ensembles_are_remembered_as_a_whole(tmp_path: Path) -> None:
    """An ensemble's answer comes from the cache without its step; when the step is reloaded, it is forgotten."""
    write(tmp_path, "step", CONFIG.replace("response_cache { enable: true }", ""))
    (tmp_path / "whole" / "1").mkdir(parents=True)
    (tmp_path / "whole" / "config.pbtxt").write_text(ENSEMBLE)
    with Server(tmp_path, *FLAGS) as server, httpclient.InferenceServerClient(server.http) as client:
        tensor = httpclient.InferInput("A", [1, 1], "FP32")
        tensor.set_data_from_numpy(np.array([[0.5]], np.float32))
        answers = [client.infer("whole", [tensor]).as_numpy("B")[0, 0] for _ in range(3)]
        assert answers == [1.5] * 3
        assert (counts(server, "step")["executions"], counts(server, "whole")["cache_hit"]) == (1, 2)
        write(tmp_path, "step", CONFIG.replace("response_cache { enable: true }", ""), added=10)
        client.load_model("step")
        assert client.infer("whole", [tensor]).as_numpy("B")[0, 0] == 11.5
