"""Instances as an operator sees them: where they run, whose turn it is, and models of one name in two repositories."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from support import onnx_models
from support.server import TRITONSERVER, Server
from support.until import until

pytestmark = pytest.mark.slow

ECHO = """
import os, time
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        self.place = "%s"

    def execute(self, requests):
        begun = time.monotonic_ns()
        time.sleep(0.002)
        line = f"{self.place} {begun} {time.monotonic_ns()} {sorted(os.sched_getaffinity(0))} {os.getpid()}"
        answer = pb_utils.Tensor("Y", np.array([line.encode()], dtype=object))
        return [pb_utils.InferenceResponse([answer]) for _ in requests]
"""
CONFIG = """
backend: "python"
input [ { name: "X" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "Y" data_type: TYPE_STRING dims: [ 1 ] } ]
"""


def write(root: Path, name: str, more: str = "") -> None:
    version = root / name / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(ECHO % f"{root.name}/{name}")
    (root / name / "config.pbtxt").write_text(CONFIG + more)


@contextmanager
def connected(server: Server) -> Iterator[Any]:
    client = grpcclient.InferenceServerClient(server.grpc)
    try:
        yield client
    finally:
        client.close()


def ask(client: Any, model: str) -> str:
    x = grpcclient.InferInput("X", [1], "INT32")
    x.set_data_from_numpy(np.zeros(1, np.int32))
    return client.infer(model, [x]).as_numpy("Y")[0].decode()  # type: ignore[no-any-return]


def get(server: Server, path: str, port: int = 0) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port or server.http_port, timeout=30)
    connection.request("GET", path)
    body = connection.getresponse().read()
    connection.close()
    return body


def group(resources: str, count: int) -> str:
    return f"instance_group [ {{ kind: KIND_CPU count: {count} rate_limiter {{ resources [ {resources} ] }} }} ]"


def test_the_rate_limiter_keeps_instances_of_all_models_apart(tmp_path: Path) -> None:
    """With one of a global resource, of the instances of two models no two execute at once; off, they do."""
    for name in ("a", "b"):
        write(tmp_path, name, group('{ name: "R" global: true count: 1 }', 1))

    def overlaps(server: Server) -> int:
        with connected(server) as client, ThreadPoolExecutor(8) as pool:
            lines = list(pool.map(lambda n: ask(client, "ab"[n % 2]), range(48)))
        times = sorted((int(begin), int(end)) for _, begin, end, *_ in (line.split(" ", 3) for line in lines))
        return sum(begin < end for (_, end), (begin, _) in itertools.pairwise(times))

    with Server(tmp_path, "--rate-limit=execution_count", "--rate-limit-resource=R:1") as server:
        assert overlaps(server) == 0
    with Server(tmp_path, "--rate-limit-resource=R:1") as server:
        until(lambda: overlaps(server) > 0)
        assert "--rate-limit-resource without --rate-limit=execution_count is accepted but has no effect" in server.log
        assert "'instance_group.rate_limiter' in its config has no effect without --rate-limit" in server.log


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
def test_host_policies_place_workers(tmp_path: Path) -> None:
    """A worker runs on the cores of its group's policy, or of the policy of its kind, and after a restart still."""
    first, second = sorted(os.sched_getaffinity(0))[:2]
    write(tmp_path, "usual", "instance_group [ { kind: KIND_CPU } ]")
    write(tmp_path, "own", 'instance_group [ { kind: KIND_CPU host_policy: "quiet" } ]')
    write(tmp_path, "free", 'instance_group [ { kind: KIND_MODEL host_policy: "nobody" } ]')
    flags = (f"--host-policy=cpu,cpu-cores={first}", f"--host-policy=quiet,cpu-cores={second}-{second}")
    with Server(tmp_path, *flags) as server, connected(server) as client:
        assert f" [{first}] " in ask(client, "usual")
        before = ask(client, "own")
        assert f" [{second}] " in before
        assert f" [{first}, {second}" in ask(client, "free")
        assert "host policy 'nobody' of an instance group has no effect" in server.log
        psutil.Process(int(before.split()[-1])).kill()
        after = ""

        def answered() -> bool:
            nonlocal after
            with suppress(InferenceServerException):
                after = ask(client, "own")
            return bool(after)

        until(answered)
        assert f" [{second}] " in after
        assert after.rpartition(" ")[2] != before.rpartition(" ")[2]


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        ("cpu,cpu-cores=9999", "host policy 'cpu' names CPU cores that this process cannot use: 9999"),
        ("cpu,numa-node=999", "host policy 'cpu' names NUMA node 999, which this machine has not"),
    ],
)
def test_policies_that_cannot_be_followed_end_the_start(tmp_path: Path, policy: str, text: str) -> None:
    """Before any model is loaded, with exit code 1."""
    server = Server(tmp_path, f"--host-policy={policy}", command=TRITONSERVER)
    try:
        assert server.wait() == 1
        assert f"error: creating server: Invalid argument - {text}" in server.log
    finally:
        server.close()


def test_models_of_one_name_in_two_repositories(tmp_path: Path) -> None:
    """Plain names work where they are unambiguous; all are found by namespace and name, and metrics tell them apart."""
    one, two = tmp_path / "one", tmp_path / "two"
    for root, names in ((one, ("both", "left")), (two, ("both",))):
        for name in names:
            write(root, name)
    with (
        Server(one, f"--model-repository={two}", "--model-namespacing=true") as server,
        connected(server) as client,
    ):
        assert ask(client, "left").startswith("one/left ")
        assert ask(client, f"{one}::both").startswith("one/both ")
        assert ask(client, f"{two}::both").startswith("two/both ")
        with pytest.raises(Exception, match="There are 2 identifiers of model 'both' in global map"):
            ask(client, "both")
        with pytest.raises(Exception, match=r"Request for unknown model: 'x' is not found"):
            ask(client, "x")
        index = client.get_model_repository_index(as_json=True)["models"]
        assert [line["name"] for line in index] == ["both", "left", "both"]
        page = get(server, "/metrics", server.metrics_port).decode()
        for place in (one, two):
            assert f'nv_inference_count{{model="both",namespace="{place}",version="1"}} 1' in page
        stats = json.loads(get(server, "/v2/models/stats"))["model_stats"]
        assert [line["name"] for line in stats] == ["both", "both", "left"]
    with Server(one, f"--model-repository={two}", "--exit-on-error=false", "--strict-readiness=false") as server:
        until(lambda: "failed to poll model 'both': not unique across all model repositories" in server.log)


SEQUENCE = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        self.seen = []

    def execute(self, requests):
        answers = []
        for request in requests:
            self.seen += [tensor.as_numpy().tolist() for tensor in request.inputs()]
            text = np.array([[str(self.seen).encode()]], dtype=object)
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("Y", text)]))
        return answers
"""
SEQUENCE_CONFIG = """
backend: "python"
max_batch_size: 2
input [ { name: "X" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "Y" data_type: TYPE_STRING dims: [ 1 ] } ]
sequence_batching {
  control_input [ { name: "START" control [ { kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ] } ] } ]
}
model_warmup [ { name: "s" batch_size: 1
  inputs { key: "X" value { data_type: TYPE_INT32 dims: [ 1 ] input_data_file: "x" } }
  inputs { key: "START" value { data_type: TYPE_INT32 dims: [ 1 ] zero_data: true } }
} ]
"""
FAST_CONFIG = """
backend: "onnxruntime"
instance_group [ { kind: KIND_CPU count: 3 } ]
model_warmup [
  { batch_size: 2 count: 2 inputs { key: "x" value { data_type: TYPE_FP32 dims: [ 2 ] random_data: true } } },
  { batch_size: 1 inputs { key: "x" value { data_type: TYPE_FP32 dims: [ 2 ] zero_data: true } } }
]
"""


def test_models_of_all_kinds_are_warmed_up(tmp_path: Path) -> None:
    """A sequence model is given its controls by the sample; statistics begin with the first request of a client."""
    for name, config in (("steps", SEQUENCE_CONFIG), ("fast", FAST_CONFIG)):
        (tmp_path / name / "1").mkdir(parents=True)
        (tmp_path / name / "config.pbtxt").write_text(config)
    (tmp_path / "steps" / "1" / "model.py").write_text(SEQUENCE)
    (tmp_path / "steps" / "warmup").mkdir()
    (tmp_path / "steps" / "warmup" / "x").write_bytes((7).to_bytes(4, "little"))
    onnx.save(onnx_models.identity(), tmp_path / "fast" / "1" / "model.onnx")
    with Server(tmp_path) as server, connected(server) as client:
        for line in json.loads(get(server, "/v2/models/stats"))["model_stats"]:
            assert (line["inference_count"], line["execution_count"], line["batch_stats"]) == (0, 0, []), line["name"]
        x = grpcclient.InferInput("X", [1, 1], "INT32")
        x.set_data_from_numpy(np.array([[9]], np.int32))
        answer = client.infer("steps", [x], sequence_id=5, sequence_start=True).as_numpy("Y")
        assert answer[0][0].decode() == "[[[7]], [[0]], [[9]], [[1]]]"
        warm = r"model 'fast' instance fast_0_\d is warm after 2 samples"
        until(lambda: len(re.findall(warm, server.log)) >= 3)
        assert len(re.findall(warm, server.log)) == 3
