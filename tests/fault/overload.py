"""Three times the load that a model can bear: `make overload SECONDS=60`. What is done must not suffer by what is not.

A real server, a Python model of a known speed, a queue that is bounded in size and time. Requests arrive at a fixed
rate, whatever becomes of those before them. Every one is answered; what was refused has not run, and is told when to
come again; the server's memory does not grow; and the model does as much as it does when nothing is refused.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

from support.server import Server  # noqa: E402

MODEL = """import os
import time

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.done = open(os.path.join(args["model_repository"], "done"), "w")

    def execute(self, requests):
        time.sleep(0.02)
        self.done.write("".join(request.request_id() + "\\n" for request in requests))
        self.done.flush()
        return [
            pb_utils.InferenceResponse(
                output_tensors=[pb_utils.Tensor("Y", pb_utils.get_input_tensor_by_name(request, "X").as_numpy())]
            )
            for request in requests
        ]
"""
#: Four requests each 20 ms. The queue holds 0.2 s of work and has patience for half of that: both limits bind.
CONFIG = """backend: "python"
max_batch_size: 4
input [ { name: "X" data_type: TYPE_FP32 dims: [ 16 ] } ]
output [ { name: "Y" data_type: TYPE_FP32 dims: [ 16 ] } ]
dynamic_batching { default_queue_policy { max_queue_size: 40 default_timeout_microseconds: 100000 } }
"""
MODEL_NAME = "bounded"
#: Times what the model can bear.
LOAD = 3.0
CAPACITY_SECONDS = 1.5


@dataclass
class Report:
    """Times are seconds, rates requests per second, memory bytes."""

    capacity: float = 0.0
    seconds: float = 0.0
    sent: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    #: Refusals without a Retry-After of at least a second.
    untold: int = 0
    #: Refused requests that ran all the same, and those answered with success that did not run.
    ran_in_vain: int = 0
    never_ran: int = 0
    memory_before: int = 0
    memory_after: int = 0

    @property
    def goodput(self) -> float:
        return self.outcomes["200"] / self.seconds

    def text(self) -> str:
        waits = sorted(self.latencies) or [0.0]
        return (
            f"capacity {self.capacity:.0f}/s, asked {self.sent / self.seconds:.0f}/s for {self.seconds:.0f} s\n"
            f"goodput {self.goodput:.0f}/s, {self.goodput / self.capacity:.0%} of capacity\n"
            f"outcomes {dict(self.outcomes)}\n"
            f"latency of what was done: median {waits[len(waits) // 2] * 1000:.0f} ms, "
            f"99 % {waits[int(len(waits) * 0.99)] * 1000:.0f} ms\n"
            f"refused but run {self.ran_in_vain}, answered but not run {self.never_ran}, "
            f"refused without Retry-After {self.untold}\n"
            f"memory {self.memory_before >> 20} -> {self.memory_after >> 20} MiB"
        )


def verdict(report: Report, least_goodput: float) -> list[str]:
    """What is wrong."""
    refused = sum(count for name, count in report.outcomes.items() if name in REFUSALS)
    checks = {
        "some requests were not answered": report.sent == sum(report.outcomes.values()),
        "there were other answers than success and refusals": refused + report.outcomes["200"] == report.sent,
        "nothing was refused for the queue's size": report.outcomes[REFUSALS[0]] > 0,
        "nothing was refused for its time": report.outcomes[REFUSALS[1]] > 0,
        "refused requests ran": report.ran_in_vain == 0,
        "requests were answered and did not run": report.never_ran == 0,
        "refusals did not say when to come again": report.untold == 0,
        # A client that was held up sends what it has missed at once, on as many connections.
        "memory grew": report.memory_after - report.memory_before < 64 << 20,
        f"goodput below {least_goodput:.0%}": report.goodput >= least_goodput * report.capacity,
    }
    return [what for what, good in checks.items() if not good]


REFUSALS = ("Exceeds maximum queue size", "Request timeout expired")


class Clients:
    """Connections are reused, and there are as many as are needed at once."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(self, id: str) -> tuple[str, dict[str, str]]:
        """What became of the request, and the headers of its answer."""
        reader, writer = self._idle.pop() if self._idle else await asyncio.open_connection("127.0.0.1", self._port)
        body = json.dumps(
            {"id": id, "inputs": [{"name": "X", "datatype": "FP32", "shape": [1, 16], "data": [0.5] * 16}]}
        ).encode()
        head = f"POST /v2/models/{MODEL_NAME}/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        lines = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)).decode().splitlines()
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
        answer = await asyncio.wait_for(reader.readexactly(int(headers["content-length"])), 60)
        self._idle.append((reader, writer))
        status = lines[0].split(" ")[1]
        if status == "200":
            return status, headers
        said = json.loads(answer)["error"]
        return next((text for text in REFUSALS if said.endswith(text)), said), headers

    def close(self) -> None:
        for _, writer in self._idle:
            writer.close()


async def _capacity(clients: Clients) -> float:
    """Requests per second when there is always something to do and nothing is refused."""
    begun = time.monotonic()
    done = 0

    async def converse(number: int) -> None:
        nonlocal done
        turn = 0
        while time.monotonic() - begun < CAPACITY_SECONDS:
            outcome, _ = await clients.ask(f"c{number}-{turn}")
            turn += 1
            done += outcome == "200"

    await asyncio.gather(*[converse(number) for number in range(12)])
    return done / (time.monotonic() - begun)


async def _overload(
    phase: str, clients: Clients, report: Report, seconds: float, refused: set[str], answered: set[str]
) -> None:
    async def one(id: str) -> None:
        begun = time.monotonic()
        outcome, headers = await clients.ask(id)
        report.outcomes[outcome] += 1
        if outcome == "200":
            report.latencies.append(time.monotonic() - begun)
            answered.add(id)
        else:
            refused.add(id)
            report.untold += int(headers.get("retry-after", "0")) < 1

    rate = LOAD * report.capacity
    begun = time.monotonic()
    async with asyncio.TaskGroup() as group:
        while (passed := time.monotonic() - begun) < seconds:
            while report.sent < passed * rate:
                group.create_task(one(f"{phase}{report.sent}"))
                report.sent += 1
            await asyncio.sleep(0.002)
    report.seconds = seconds


def run(seconds: float) -> Report:
    report = Report()
    refused: set[str] = set()
    answered: set[str] = set()
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory) / MODEL_NAME
        (place / "1").mkdir(parents=True)
        (place / "config.pbtxt").write_text(CONFIG)
        (place / "1" / "model.py").write_text(MODEL)
        with Server(Path(directory)) as server:
            process = psutil.Process(server.process.pid)

            async def play() -> None:
                clients = Clients(server.http_port)
                try:
                    report.capacity = await _capacity(clients)
                    # What connections and buffers take is there after a moment of it.
                    await _overload("first", clients, Report(report.capacity), 0.5, refused, answered)
                    report.memory_before = process.memory_info().rss
                    await _overload("then", clients, report, seconds, refused, answered)
                    report.memory_after = process.memory_info().rss
                finally:
                    clients.close()

            asyncio.run(play())
            ran = set((place / "done").read_text().split())
    report.ran_in_vain = len(refused & ran)
    report.never_ran = len(answered - ran)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    report = run(parser.parse_args().seconds)
    print(report.text())
    wrong = verdict(report, 0.9)
    print("; ".join(wrong) or "all well")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
