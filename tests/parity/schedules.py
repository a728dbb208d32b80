"""Requests that meet in a queue, in a form that runs the same on every server: who waits is seen before the next comes.

The model is told by its input when to hold (and what to wait for), so that others queue up behind; its outputs say in
which order and in which batches they ran. A request counts as waiting when the server's gauge of pending ones says so.
"""

from __future__ import annotations

import http.client
import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.server import Server

Json = Any
LONGEST = 60.0

#: X < 0 holds: it says so with a file and waits for another. The others count: ORDER of requests, BATCH of executions.
MODEL = """import os
import time


class TritonPythonModel:
    def initialize(self, args):
        self.place = args["model_repository"]
        self.count = self.runs = 0

    def execute(self, requests):
        responses = []
        tensors = [pb_utils.get_input_tensor_by_name(request, "X").as_numpy() for request in requests]
        holds = [int(x.flat[0]) for x in tensors if x.flat[0] < 0]
        for hold in holds:
            self.count = self.runs = 0
            release = os.path.join(self.place, "release%d" % hold)
            open(os.path.join(self.place, "held%d" % hold), "w").close()
            while not os.path.exists(release):
                time.sleep(0.002)
            os.remove(release)
        if not holds:
            open(os.path.join(self.place, "ran"), "w").close()
        self.runs += 1
        for x in tensors:
            self.count += 1
            outputs = [
                pb_utils.Tensor("Y", x),
                pb_utils.Tensor("ORDER", np.full_like(x, self.count)),
                pb_utils.Tensor("BATCH", np.full_like(x, self.runs)),
            ]
            responses.append(pb_utils.InferenceResponse(output_tensors=outputs))
        return responses
"""

CONFIG = """
backend: "python"
input [ { name: "X" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [
  { name: "Y" data_type: TYPE_INT32 dims: [ 1 ] },
  { name: "ORDER" data_type: TYPE_INT32 dims: [ 1 ] },
  { name: "BATCH" data_type: TYPE_INT32 dims: [ 1 ] }
]
"""


@dataclass(frozen=True)
class Send:
    """A request called `name`, which is its id; the next step comes when it waits or is answered.

    `runs`: an instance is free for it, and its answer may be held back; the next step comes when it runs.
    """

    name: str
    priority: int = 0
    timeout_us: int = 0
    rows: int = 1
    runs: bool = False
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Hold:
    """A request that keeps an instance busy until `Release` of the same number."""

    number: int = 1


@dataclass(frozen=True)
class Release:
    number: int = 1


@dataclass(frozen=True)
class Pause:
    seconds: float


@dataclass(frozen=True)
class Await:
    """Until the request called `name` is answered."""

    name: str


@dataclass(frozen=True)
class Look:
    """Notes who has been answered so far."""


@dataclass(frozen=True)
class Count:
    """Notes the model's counters, once all requests so far are answered."""


Step = Send | Hold | Release | Pause | Await | Look | Count

COUNTERS = re.compile(
    r"^nv_inference_(request_success|request_failure|count|exec_count|pending_request_count){([^}]*)} (\d+)$",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Schedule:
    """Steps on one model. `batches`: the model has a batch dimension. At the end every request is waited for."""

    name: str
    model: str
    steps: tuple[Step, ...]
    batches: bool = True
    outputs: tuple[str, ...] = ("ORDER", "BATCH")

    def play(self, server: Server, repository: Path) -> dict[str, Json]:
        """The answers by name, in the order of the steps, and what `Look` saw."""
        return _Play(self, server, repository / self.model).run()


@dataclass
class _Play:
    schedule: Schedule
    server: Server
    place: Path
    answers: dict[str, Json] = field(default_factory=dict)
    threads: list[threading.Thread] = field(default_factory=list)
    looks: list[list[str]] = field(default_factory=list)
    counted: dict[str, int] = field(default_factory=dict)

    def run(self) -> dict[str, Json]:
        names = [step.name for step in self.schedule.steps if isinstance(step, Send)]
        for step in self.schedule.steps:
            self._do(step)
        for thread in self.threads:
            thread.join(LONGEST)
        answers = {name: self.answers.get(name, "no answer") for name in names}
        more = {"looks": self.looks, "counted": self.counted}
        return {"answers": answers, **{name: value for name, value in more.items() if value}}

    def _do(self, step: Step) -> None:
        if isinstance(step, Send):
            waiting, ran = self._pending(), self.place / "ran"
            ran.unlink(missing_ok=True)
            self._send(step.name, 0, step)
            _until(ran.exists if step.runs else lambda: step.name in self.answers or self._pending() > waiting)
        elif isinstance(step, Hold):
            self._send(f"hold {step.number}", -step.number, Send("hold"))
            held = self.place / f"held{-step.number}"
            _until(held.exists)
            held.unlink()
        elif isinstance(step, Release):
            (self.place / f"release{-step.number}").touch()
        elif isinstance(step, Pause):
            time.sleep(step.seconds)
        elif isinstance(step, Await):
            _until(lambda: step.name in self.answers)
        elif isinstance(step, Count):
            for thread in self.threads:
                thread.join(LONGEST)
            # Servers count when they have answered.
            time.sleep(0.3)
            self.counted = self._counters()
        else:
            self.looks.append(sorted(name for name in self.answers if not name.startswith("hold")))

    def _send(self, name: str, value: int, send: Send) -> None:
        shape = [send.rows, 1] if self.schedule.batches else [1]
        parameters = {"priority": send.priority, "timeout": send.timeout_us}
        body = {
            "id": send.name,
            "parameters": {key: each for key, each in parameters.items() if each},
            "inputs": [{"name": "X", "datatype": "INT32", "shape": shape, "data": [value] * send.rows}],
            "outputs": [{"name": each} for each in self.schedule.outputs],
        }
        thread = threading.Thread(target=self._ask, args=(name, json.dumps(body), dict(send.headers)), daemon=True)
        self.threads.append(thread)
        thread.start()

    def _ask(self, name: str, body: str, headers: dict[str, str]) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.http_port, timeout=LONGEST)
        try:
            connection.request("POST", f"/v2/models/{self.schedule.model}/infer", body=body, headers=headers)
            response = connection.getresponse()
            said = json.loads(response.read())
            outputs = {each["name"]: each["data"] for each in said.get("outputs", [])}
            self.answers[name] = {"status": response.status, **(outputs or said)}
        except (OSError, http.client.HTTPException) as error:
            self.answers[name] = {"broken": type(error).__name__}
        finally:
            connection.close()

    def _pending(self) -> int:
        return self._counters()["pending_request_count"]

    def _counters(self) -> dict[str, int]:
        """By name, failures with their reason."""
        counters = {}
        for name, labels, value in COUNTERS.findall(self._page()):
            said = dict(re.findall(r'(\w+)="([^"]*)"', labels))
            if said["model"] == self.schedule.model:
                counters[" ".join([name, *([said["reason"]] if "reason" in said else [])])] = int(value)
        return dict(sorted(counters.items()))

    def _page(self) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.metrics_port, timeout=LONGEST)
        try:
            connection.request("GET", "/metrics")
            return connection.getresponse().read().decode()
        finally:
            connection.close()


def _until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + LONGEST
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("a step did not come to its end")
        time.sleep(0.005)
