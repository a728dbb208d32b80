"""Mixed load for a long time: `make soak MINUTES=30`. Nothing may leak, and every honest request is answered right.

A real server with Python models (one of them decoupled) and identity models; honest clients over every protocol beside
clients that vanish, cancel, stall and send garbage. At the end, when all clients are gone, the server must hold as many
file descriptors, threads, connections and mappings of shared memory as before, and its memory must not grow steadily.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import psutil

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

from fault.soak_clients import HONEST, HOSTILE, Client  # noqa: E402
from support.server import Server  # noqa: E402

HEAD = "import time\nimport numpy as np\nimport triton_python_backend_utils as pb_utils\n\n\nclass TritonPythonModel:\n"
ECHO = """    def execute(self, requests):
        return [
            pb_utils.InferenceResponse(
                output_tensors=[pb_utils.Tensor("Y", pb_utils.get_input_tensor_by_name(r, "X").as_numpy())]
            )
            for r in requests
        ]
"""
SLOW = ECHO.replace("        return [", "        time.sleep(0.005)\n        return [", 1)
REPEAT = """    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            count = int(pb_utils.get_input_tensor_by_name(request, "N").as_numpy()[0])
            for number in range(count):
                if request.is_cancelled():
                    break
                out = pb_utils.Tensor("OUT", np.array([number], dtype=np.int32))
                sender.send(pb_utils.InferenceResponse(output_tensors=[out]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        return None
"""
CONFIG = """backend: "%s"
max_batch_size: %d
input [ { name: "X" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [ { name: "Y" data_type: TYPE_FP32 dims: [ 4 ] } ]
dynamic_batching { }
"""
REPEAT_CONFIG = """backend: "python"
model_transaction_policy { decoupled: true }
input [ { name: "N" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "OUT" data_type: TYPE_INT32 dims: [ 1 ] } ]
instance_group [ { count: 2 kind: KIND_CPU } ]
"""
MODELS = {
    "echo": (CONFIG % ("python", 64), ECHO),
    "slow": (CONFIG % ("python", 64), SLOW),
    "large": (CONFIG % ("python", 1 << 20), ECHO),
    "identity": (CONFIG % ("identity", 64), None),
    "repeat": (REPEAT_CONFIG, REPEAT),
}
FLAGS = ("--allow-client-shm=true",)

#: How long the server may take to let go of everything once the clients are gone, seconds.
SETTLE = 30.0
#: Pools of threads, and areas for large answers, are made when so many are first needed at the same time.
SPARE = {"threads": 8, "fds": 8}


@dataclass(frozen=True)
class State:
    """What a server and its workers hold. `rss` in bytes; `shm`: mappings of named shared memory, unlinked or not."""

    rss: int
    fds: int
    threads: int
    processes: int
    connections: int
    shm: int
    regions: int

    def held(self) -> dict[str, int]:
        """All that must be as before when nobody asks anything any more."""
        return {name: value for name, value in vars(self).items() if name != "rss"}


def more(before: State, after: State) -> dict[str, tuple[int, int]]:
    """What is held `after` and was not `before`, of each how much."""
    pairs = {name: (value, after.held()[name]) for name, value in before.held().items()}
    return {name: (old, new) for name, (old, new) in pairs.items() if new > old + SPARE.get(name, 0)}


@dataclass
class Report:
    """Requests by client, what went wrong, and the server's state over time."""

    done: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    states: list[State] = field(default_factory=list)
    before: State | None = None
    after: State | None = None

    def leaks(self) -> dict[str, tuple[int, int]]:
        """What is held at the end and was not at the beginning: before, after."""
        assert self.before
        assert self.after
        return more(self.before, self.after)

    def slope(self) -> tuple[float, float]:
        """Growth of memory in bytes per minute over the last two thirds, and the standard error of that."""
        start = len(self.states) // 3
        times, rss = self.times[start:], [float(s.rss) for s in self.states[start:]]
        if len(times) < 3:
            return 0.0, 0.0
        fit = statistics.linear_regression(times, rss)
        middle = statistics.fmean(times)
        spread = sum((t - middle) ** 2 for t in times)
        rest = sum((y - fit.slope * t - fit.intercept) ** 2 for t, y in zip(times, rss, strict=True))
        return fit.slope * 60, (rest / (len(times) - 2) / spread) ** 0.5 * 60

    def text(self) -> str:
        slope, error = self.slope()
        rss = [s.rss / 1e6 for s in self.states] or [0.0]
        lines = [
            "requests: " + ", ".join(f"{name} {count:,}" for name, count in sorted(self.done.items())),
            f"memory: {rss[0]:.0f} MB at first, {rss[-1]:.0f} MB at last, at most {max(rss):.0f} MB",
            f"memory's slope: {slope / 1e6:+.3f} MB a minute, standard error {error / 1e6:.3f}",
            f"before: {self.before}",
            f"after:  {self.after}",
            f"leaks: {self.leaks() or 'none'}",
            f"failures: {len(self.failures)}",
            *self.failures[:20],
        ]
        return "\n".join(lines)


def state(server: Server) -> State:
    root = psutil.Process(server.process.pid)
    tree = [root, *root.children(recursive=True)]
    rss = fds = threads = shm = 0
    for process in tree:
        with suppress(psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
            rss += process.memory_info().rss
            fds += process.num_fds()
            threads += process.num_threads()
            shm += Path(f"/proc/{process.pid}/maps").read_text().count(" /dev/shm/")
    ours = (server.http_port, server.grpc_port, server.metrics_port)
    connections = [c for c in root.net_connections() if c.laddr and c.laddr.port in ours and c.status != "LISTEN"]
    asked = HTTPConnection("127.0.0.1", server.http_port, timeout=60)
    asked.request("GET", "/v2/systemsharedmemory/status")
    answer = asked.getresponse()
    regions = len(json.loads(answer.read())) if answer.status == 200 else 0
    asked.close()
    return State(rss, fds, threads, len(tree), len(connections), shm, regions)


def run(seconds: float, report: Report | None = None, say: Callable[[str], Any] = lambda text: None) -> Report:
    """The whole soak. Failures are in the report; raises only if the server cannot be asked any more."""
    report = report or Report()
    with tempfile.TemporaryDirectory() as place:
        root = Path(place).resolve()
        for name, (config, source) in MODELS.items():
            (root / name / "1").mkdir(parents=True)
            (root / name / "config.pbtxt").write_text(config)
            if source:
                (root / name / "1" / "model.py").write_text(HEAD + source)
        with Server(root, *FLAGS) as server:
            # What is made at the first use of anything is there before the counting begins.
            first = Report()
            for _ in range(10):
                _drive(server, min(3.0, seconds / 4), first, lambda text: None)
                if all(first.done[client.__name__] for client in (*HONEST, *HOSTILE)):
                    break
            report.before = settled(server, None)
            _drive(server, seconds, report, say)
            report.after = settled(server, report.before)
    return report


def _drive(server: Server, seconds: float, report: Report, say: Callable[[str], Any]) -> None:
    """All clients at once for some time."""
    stop = threading.Event()
    threads = [
        threading.Thread(target=_client, args=(client, seed, server, stop, report), name=f"{client.__name__} {seed}")
        for seed, client in enumerate((*HONEST, *HOSTILE, *HONEST))
    ]
    for thread in threads:
        thread.start()
    began = time.monotonic()
    every = max(0.5, seconds / 600)
    told = 0.0
    while (elapsed := time.monotonic() - began) < seconds and server.process.poll() is None:
        report.times.append(elapsed)
        report.states.append(state(server))
        if elapsed - told > 60:
            told = elapsed
            say(f"{elapsed / 60:.0f} min: {sum(report.done.values()):,} requests, {len(report.failures)} failures, "
                f"{report.states[-1]}")  # fmt: skip
        stop.wait(every)
    stop.set()
    for thread in threads:
        thread.join(120)
        if thread.is_alive():
            report.failures.append(f"{thread.name} waits for an answer that does not come")
    if server.process.poll() is not None:
        report.failures.append(f"the server left with exit code {server.process.returncode}\n{server.log[-3000:]}")


def _client(client: Client, seed: int, server: Server, stop: threading.Event, report: Report) -> None:
    chance = random.Random(seed)
    while not stop.is_set():
        try:
            for _ in client(server, chance, stop):
                report.done[client.__name__] += 1
        except Exception as failure:
            report.failures.append(f"{client.__name__}: {type(failure).__name__}: {failure}"[:1000])
            stop.wait(0.5)


def settled(server: Server, goal: State | None) -> State:
    """The state once it is at `goal`, or once it stays the same, or when the time is over."""
    deadline = time.monotonic() + SETTLE
    last = state(server)
    while time.monotonic() < deadline:
        time.sleep(0.5)
        now = state(server)
        if goal is None and now.held() == last.held():
            return now
        if goal is not None and not more(goal, now):
            return now
        last = now
    return last


def verdict(report: Report) -> list[str]:
    """Everything that speaks against the server."""
    slope, error = report.slope()
    minutes = report.times[-1] / 60 if report.times else 0.0
    grown = slope * minutes
    found = [*report.failures[:5], *(f"{name}: {a} before, {b} after" for name, (a, b) in report.leaks().items())]
    # A slope that is no noise, and more than one part in fifty of the memory over the whole run.
    if minutes >= 5 and slope > 3 * error and grown > report.states[0].rss / 50:
        found.append(f"memory grows by {slope / 1e6:.2f} MB a minute")
    missing = [client.__name__ for client in (*HONEST, *HOSTILE) if not report.done[client.__name__]]
    if missing:
        found.append(f"never got through: {', '.join(missing)}")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    options = parser.parse_args(argv)
    report = run(options.minutes * 60, say=lambda text: print(text, flush=True))
    print(report.text())
    bad = verdict(report)
    print("\n".join(["FAILED:", *bad]) if bad else "passed")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
