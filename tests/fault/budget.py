"""Twenty models of which six fit: `make budget SECONDS=120`. Memory stays within the budget, and no request fails.

A real server with `--memory-budget`, Python models with arrays and ONNX models with weights, all of about 60 MB, and
real clients over HTTP and gRPC that ask some models often and others rarely. The memory of the server and all that it
has started is read five times a second, by somebody else than the server.
"""

from __future__ import annotations

import argparse
import itertools
import random
import re
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import psutil
import tritonclient.grpc
import tritonclient.http
from onnx import TensorProto, helper, numpy_helper

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

from support.server import Server  # noqa: E402

#: How many are Python models, and how many ONNX models.
MODELS = (13, 7)
BUDGET = 620 << 20
#: What may be exceeded.
TOLERANCE = 1.05
WEIGHTS = 60 << 20
CLIENTS = 6

MODEL = f"""import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.weights = np.full({WEIGHTS}, int(args["model_name"][1:]), dtype=np.uint8)

    def execute(self, requests):
        return [
            pb_utils.InferenceResponse(
                output_tensors=[
                    pb_utils.Tensor("Y", pb_utils.get_input_tensor_by_name(request, "X").as_numpy() + self.weights[-1])
                ]
            )
            for request in requests
        ]
"""
CONFIG = """backend: "{backend}"
max_batch_size: 8
input [ {{ name: "X" data_type: TYPE_FP32 dims: [ 4 ] }} ]
output [ {{ name: "Y" data_type: TYPE_FP32 dims: [ 4 ] }} ]
dynamic_batching {{ }}
instance_group [ {{ count: 1 kind: KIND_CPU }} ]
"""


@dataclass
class Report:
    """Memory is bytes, times are seconds."""

    seconds: float = 0.0
    #: Clients write at the same time.
    lock: threading.Lock = field(default_factory=threading.Lock)
    outcomes: Counter[str] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    #: Of the process tree, five times a second; the first are those of the start. Processes are read one after the
    #: other: what moves from one to another meanwhile is counted twice.
    samples: list[int] = field(default_factory=list)
    cold_loads: list[float] = field(default_factory=list)
    asked: Counter[str] = field(default_factory=Counter)
    #: What is held after the server has been idle for a moment.
    awake: int = 0

    @property
    def most(self) -> int:
        """What was not gone at the next look."""
        return max(map(min, itertools.pairwise(self.samples)))

    def text(self) -> str:
        return (
            f"{sum(self.outcomes.values())} requests of {len(self.asked)} models in {self.seconds:.0f} s: "
            f"{dict(self.outcomes)}\n"
            f"latency: median {_part(self.latencies, 0.5) * 1000:.1f} ms, 99 % {_part(self.latencies, 0.99):.2f} s, "
            f"longest {max(self.latencies, default=0):.2f} s\n"
            f"{len(self.cold_loads)} cold loads: median {_part(self.cold_loads, 0.5):.2f} s, "
            f"99 % {_part(self.cold_loads, 0.99):.2f} s\n"
            f"memory of all processes: at most {self.most >> 20} MiB, budget {BUDGET >> 20} MiB "
            f"({self.most / BUDGET:.1%}), {len(self.samples)} samples; {self.awake} models awake at the end"
        )


def verdict(report: Report, *, least_cold: int) -> list[str]:
    """What is wrong."""
    checks = {
        "requests failed": set(report.outcomes) == {"ok"},
        f"memory was above {TOLERANCE:.0%} of the budget": report.most <= BUDGET * TOLERANCE,
        "models were hardly ever loaded on demand": len(report.cold_loads) >= least_cold,
        "fewer than six models were awake at the end": report.awake >= 6,
    }
    return [what for what, good in checks.items() if not good]


def _part(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else 0.0


def put_models(repository: Path, models: tuple[int, int]) -> list[str]:
    names = []
    for number in range(sum(models)):
        name = f"m{number}"
        names.append(name)
        place = repository / name
        (place / "1").mkdir(parents=True)
        python = number < models[0]
        (place / "config.pbtxt").write_text(CONFIG.format(backend="python" if python else "onnxruntime"))
        if python:
            (place / "1" / "model.py").write_text(MODEL)
        else:
            put_onnx(place / "1" / "model.onnx", number)
    return names


def put_onnx(path: Path, number: int) -> None:
    """Y = X + W[last], with W of the size of a small model's weights."""
    weights = np.full(WEIGHTS // 4, number, np.float32)
    nodes = [
        helper.make_node("Shape", ["X"], ["size"]),
        helper.make_node("Gather", ["size", "one"], ["last"]),
        helper.make_node("Gather", ["W", "last"], ["w"]),
        helper.make_node("Add", ["X", "w"], ["Y"]),
    ]
    made = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(weights, "W"), numpy_helper.from_array(np.array(1, np.int64), "one")],
    )
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))


class Sampler(threading.Thread):
    """Reads what the server and all that it has started take, as the kernel shares out what they share."""

    def __init__(self, pid: int, samples: list[int]) -> None:
        super().__init__(daemon=True)
        self._server = psutil.Process(pid)
        self._samples = samples
        self._end = threading.Event()

    def run(self) -> None:
        while not self._end.wait(0.2):
            self._samples.append(self._now())

    def stop(self) -> None:
        self._end.set()
        self.join()

    def _now(self) -> int:
        total = 0
        for process in [self._server, *self._server.children(recursive=True)]:
            try:
                total += process.memory_full_info().pss
            except psutil.Error:
                """It is gone."""
        return total


def ask(server: Server, number: int, names: list[str], over: Callable[[], bool], report: Report) -> None:
    """One client: models of low rank are asked often, those of high rank rarely, and each client ranks them alike."""
    chance = random.Random(number)
    weights = [1 / (rank + 1) ** 1.1 for rank in range(len(names))]
    module = tritonclient.http if number % 2 else tritonclient.grpc
    more = {"network_timeout": 60.0, "connection_timeout": 60.0} if number % 2 else {}
    client = module.InferenceServerClient(server.http if number % 2 else server.grpc, **more)
    data = np.arange(4, dtype=np.float32).reshape(1, 4)
    given = module.InferInput("X", [1, 4], "FP32")
    given.set_data_from_numpy(data)
    while not over():
        name = chance.choices(names, weights)[0]
        begun = time.monotonic()
        try:
            answer = client.infer(name, [given]).as_numpy("Y")
            outcome = "ok" if np.array_equal(answer, data + int(name[1:])) else f"{name} answered {answer}"
        except Exception as error:
            outcome = str(error)
        with report.lock:
            report.outcomes[outcome] += 1
            report.asked[name] += 1
            report.latencies.append(time.monotonic() - begun)
        time.sleep(0.005)
    client.close()


def run(seconds: float, models: tuple[int, int] = MODELS, least: int = 0) -> Report:
    """For so many seconds, and at `least` so many requests."""
    report = Report()
    with tempfile.TemporaryDirectory() as directory:
        names = put_models(Path(directory), models)
        ranked = random.Random(7).sample(names, len(names))
        server = Server(Path(directory), f"--memory-budget={BUDGET}")
        sampler = Sampler(server.process.pid, report.samples)
        sampler.start()
        with server:
            begun = time.monotonic()

            def over() -> bool:
                with report.lock:
                    return time.monotonic() - begun >= seconds and sum(report.asked.values()) >= least

            clients = [threading.Thread(target=ask, args=(server, n, ranked, over, report)) for n in range(CLIENTS)]
            for client in clients:
                client.start()
            for client in clients:
                client.join()
            report.seconds = time.monotonic() - begun
            with tritonclient.http.InferenceServerClient(server.http) as client:
                index = client.get_model_repository_index()
            report.awake = sum(not entry.get("reason") for entry in index)
            sampler.stop()
        report.cold_loads = [float(each) for each in re.findall(r"woke '\w+' in ([\d.]+) s", server.log)]
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0)
    report = run(parser.parse_args().seconds)
    print(report.text())
    wrong = verdict(report, least_cold=20)
    print("; ".join(wrong) or "all well")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
