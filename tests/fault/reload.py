"""Steady load while models are reloaded: `make reload SECONDS=300 RELOADS=200`. Nobody may notice.

A real server with a Python and an ONNX model; 300 requests a second, in open loop, half over HTTP and half over gRPC,
while the two are reloaded over and over, every second time with something broken (a syntax error, a wrong shape, a bad
config, ...). No request may fail; each is answered by a version that served while it was on its way; after a good load
nothing of the version before is left. At the end the server holds as much as at the beginning.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import statistics
import struct
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
import psutil

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

from conch.pb import grpc_service_pb2 as pb  # noqa: E402
from fault.soak import State, more, settled  # noqa: E402
from support.reloading import BREAKS, WIDTH, load, put, reasons  # noqa: E402
from support.server import Server  # noqa: E402

RATE = 300.0
MODELS = {"py": "python", "net": "onnxruntime"}
INFER = "/inference.GRPCInferenceService/ModelInfer"
TIMEOUT = 60.0


@dataclass
class Served:
    """Which numbers a model may add now: that of the last good load, and that of one under way."""

    done: int = 0
    begun: int = 0


@dataclass
class Report:
    sent: int = 0
    answered: int = 0
    failures: list[str] = field(default_factory=list)
    #: Loads by model and what came of them.
    loads: Counter[str] = field(default_factory=Counter)
    wrong_loads: list[str] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    #: Resident memory of the server's own process over time, in bytes.
    rss: list[float] = field(default_factory=list)
    before: State | None = None
    after: State | None = None
    seconds: float = 0.0
    #: The server's own memory before and after, in bytes, when all is quiet.
    own: tuple[int, int] = (0, 0)

    def slope(self) -> float:
        """Growth of the server's own memory in bytes a minute over the last two thirds."""
        start = len(self.rss) // 3
        if len(self.rss) - start < 3:
            return 0.0
        return statistics.linear_regression(self.times[start:], self.rss[start:]).slope * 60

    def text(self) -> str:
        ordered = sorted(self.latencies) or [0.0]
        return (
            f"{self.sent} requests in {self.seconds:.0f} s ({self.sent / max(self.seconds, 1e-9):.0f}/s), "
            f"{self.answered} answered, {len(self.failures)} failures\n"
            f"loads: {dict(sorted(self.loads.items()))}; unexpected: {self.wrong_loads[:5]}\n"
            f"latency p50 {ordered[len(ordered) // 2] * 1e3:.1f} ms, "
            f"p99 {ordered[len(ordered) * 99 // 100] * 1e3:.1f} ms, most {ordered[-1] * 1e3:.0f} ms\n"
            f"the server's own memory: {self.own[0] / 1e6:.1f} -> {self.own[1] / 1e6:.1f} MB, "
            f"{self.slope() / 1e6:+.2f} MB a minute\n"
            f"before {self.before}\nafter  {self.after}\n" + "\n".join(self.failures[:10])
        )


def verdict(report: Report) -> list[str]:
    """What is wrong."""
    assert report.before
    assert report.after
    held = more(report.before, report.after)
    checks = {
        "requests failed": not report.failures,
        "requests were not answered": report.answered == report.sent,
        "loads ended otherwise than they should": not report.wrong_loads,
        f"more is held than before: {held}": not held,
        # A version that is not given back has 8 MiB.
        "memory is not given back": report.own[1] - report.own[0] < 24e6,
        "memory grows": report.seconds < 120 or report.slope() < 1e6,
    }
    return [what for what, good in checks.items() if not good]


class Load:
    """The clients. Requests go out when it is time for them, whether others are answered or not."""

    def __init__(self, server: Server, report: Report, served: dict[str, Served]) -> None:
        self._server = server
        self._report = report
        self._served = served
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._channel = grpc.aio.insecure_channel(server.grpc)
        self._call = self._channel.unary_unary(
            INFER, pb.ModelInferRequest.SerializeToString, pb.ModelInferResponse.FromString
        )

    async def run(self, seconds: float) -> None:
        begun = time.monotonic()
        ways = itertools.cycle([(name, way) for way in (self._http, self._grpc) for name in MODELS])
        sent = 0
        async with asyncio.TaskGroup() as group:
            while (passed := time.monotonic() - begun) < seconds:
                while sent < passed * RATE:
                    name, way = next(ways)
                    group.create_task(self._one(name, way, float(sent % 1000)))
                    sent += 1
                await asyncio.sleep(0.002)
        self._report.sent += sent

    async def close(self) -> None:
        for _, writer in self._idle:
            writer.close()
        await self._channel.close()

    async def _one(self, name: str, way: Any, value: float) -> None:
        least = self._served[name].done
        begun = time.monotonic()
        try:
            added = await asyncio.wait_for(way(name, value), TIMEOUT) - value
        except Exception as failure:
            self._report.failures.append(f"{name} {way.__name__}: {type(failure).__name__}: {failure}"[:500])
            return
        self._report.latencies.append(time.monotonic() - begun)
        self._report.answered += 1
        if not least <= added <= self._served[name].begun:
            self._report.failures.append(f"{name} adds {added}, not {least} to {self._served[name].begun}")

    async def _http(self, name: str, value: float) -> float:
        place = ("127.0.0.1", self._server.http_port)
        reader, writer = self._idle.pop() if self._idle else await asyncio.open_connection(*place)
        tensor = {"name": "X", "datatype": "FP32", "shape": [1, WIDTH], "data": [value] * WIDTH}
        body = json.dumps({"inputs": [tensor]}).encode()
        head = f"POST /v2/models/{name}/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
        answer = json.loads(await reader.readexactly(int(headers["content-length"])))
        self._idle.append((reader, writer))
        if " 200 " not in lines[0]:
            raise AssertionError(f"{lines[0]}: {answer}")
        found: float = answer["outputs"][0]["data"][0]
        return found

    async def _grpc(self, name: str, value: float) -> float:
        request = pb.ModelInferRequest(model_name=name, raw_input_contents=[struct.pack("<f", value) * WIDTH])
        request.inputs.add(name="X", datatype="FP32", shape=[1, WIDTH])
        answer = await self._call(request)
        found: float = struct.unpack_from("<f", answer.raw_output_contents[0])[0]
        return found


async def _reload(
    server: Server, root: Path, served: dict[str, Served], report: Report, count: int, pause: float
) -> None:
    """`count` loads, every second one broken."""
    ways = {name: itertools.cycle(BREAKS[backend]) for name, backend in MODELS.items()}
    begun = time.monotonic()
    for turn in range(count):
        name = list(MODELS)[turn // 2 % len(MODELS)]
        broken = next(ways[name]) if turn % 2 == 0 else ""
        number = served[name].begun + 1
        await asyncio.to_thread(put, root, name, MODELS[name], number, broken=broken)
        if not broken:
            served[name].begun = number
        status, said = await asyncio.to_thread(load, server.http_port, name)
        if broken:
            stale = (await asyncio.to_thread(reasons, server.http_port))[name]
            good = status == 400 and stale[0] == "READY" and "load of a newer one failed" in stale[1]
            # Some faults are found before any version is made, and then Triton says so in other words.
            good = good or (status in {400, 500} and stale[0] == "READY" and stale[1])
        else:
            served[name].done = number
            good = status == 200
        report.loads[f"{name} {broken or 'good'}"] += 1
        if not good:
            report.wrong_loads.append(f"{name} {broken or 'good'}: {status} {said}")
        await asyncio.sleep(max(0.0, begun + (turn + 1) * pause - time.monotonic()))


async def _watch(server: Server, report: Report, every: float) -> None:
    process = psutil.Process(server.process.pid)
    begun = time.monotonic()
    while True:
        report.times.append(time.monotonic() - begun)
        report.rss.append(float(process.memory_info().rss))
        await asyncio.sleep(every)


def run(seconds: float, reloads: int) -> Report:
    report = Report()
    served = {name: Served() for name in MODELS}
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        for name, backend in MODELS.items():
            put(root, name, backend, 0)
        with Server(root, "--model-control-mode=explicit", "--load-model=*") as server:

            async def play(report: Report, seconds: float, reloads: int) -> None:
                clients = Load(server, report, served)
                watch = asyncio.create_task(_watch(server, report, max(0.2, seconds / 600)))
                try:
                    async with asyncio.TaskGroup() as group:
                        group.create_task(clients.run(seconds))
                        group.create_task(_reload(server, root, served, report, reloads, seconds / reloads))
                finally:
                    watch.cancel()
                    await clients.close()

            # What is made at the first use of anything is there before the counting begins.
            asyncio.run(play(Report(), min(seconds / 4, 10.0), 8))
            report.before = settled(server, None)
            own = psutil.Process(server.process.pid).memory_info().rss
            begun = time.monotonic()
            asyncio.run(play(report, seconds, reloads))
            report.seconds = time.monotonic() - begun
            report.after = settled(server, report.before)
            report.own = (own, psutil.Process(server.process.pid).memory_info().rss)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--reloads", type=int, default=200)
    options = parser.parse_args()
    report = run(options.seconds, options.reloads)
    print(report.text())
    wrong = verdict(report)
    print("; ".join(wrong) or "all well")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
