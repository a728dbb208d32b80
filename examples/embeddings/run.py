"""Serves the embedding pipeline and compares it with the original library: the same vectors, and how fast."""

from __future__ import annotations

import argparse
import asyncio
import http.client
import itertools
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc.aio as grpcclient

from build import build, original
from reference import Library

HERE = Path(__file__).resolve().parent
LIBRARY = "the library in a loop"
MODELS = ("embed", "embed_bls")
#: The largest difference of a number that still counts as the same vector.
SAME = 1e-4

Vectors = np.ndarray[Any, Any]
Embed = Callable[[Sequence[str]], Vectors]


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 if all vectors are the same and the server is faster than the library."""
    options = _options(argv)
    texts = (HERE / "sentences.txt").read_text().splitlines()[: options.sentences]
    library = Library()
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="embeddings-")))
        build(place / "repository", original())
        url = stack.enter_context(serving(place / "repository"))
        pipelines: dict[str, Embed] = {model: partial(ask, url, model, options.concurrency) for model in MODELS}
        expected = library.one_by_one(texts)
        worst = {name: float(np.abs(embed(texts) - expected).max()) for name, embed in pipelines.items()}
        rates = race({LIBRARY: library.one_by_one, **pipelines}, texts, options.rounds, options.repeat)
    report(worst, rates)
    slowest = min(rates[model] for model in MODELS)
    return 0 if max(worst.values()) <= SAME and slowest > rates[LIBRARY] else 1


def ask(url: str, model: str, concurrency: int, texts: Sequence[str]) -> Vectors:
    """A request for each text, `concurrency` of them at a time."""
    return asyncio.run(_ask(url, model, concurrency, texts))


async def _ask(url: str, model: str, concurrency: int, texts: Sequence[str]) -> Vectors:
    waiting = iter(enumerate(texts))
    vectors: list[Any] = [None] * len(texts)
    async with grpcclient.InferenceServerClient(url) as client:

        async def work() -> None:
            for number, text in waiting:
                tensor = grpcclient.InferInput("text", [1, 1], "BYTES")
                tensor.set_data_from_numpy(np.array([[text.encode()]], dtype=object))
                vectors[number] = (await client.infer(model, [tensor])).as_numpy("embedding")[0]

        await asyncio.gather(*[work() for _ in range(concurrency)])
    return np.stack(vectors)


def race(contestants: Mapping[str, Embed], texts: Sequence[str], rounds: int, repeat: int) -> dict[str, float]:
    """Sentences per second of each, the median of rounds in which they take turns.

    A round of a server is `repeat` times as long: its rate counts while it is busy, not while the last texts leave.
    """
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for _, (name, embed) in itertools.product(range(rounds), contestants.items()):
        mine = list(texts) * (1 if name == LIBRARY else repeat)
        began = time.perf_counter()
        embed(mine)
        rates[name].append(len(mine) / (time.perf_counter() - began))
    return {name: statistics.median(each) for name, each in rates.items()}


def report(worst: Mapping[str, float], rates: Mapping[str, float]) -> None:
    base = rates[LIBRARY]
    print(f"{'':24}{'sentences/s':>12}{'':>8}{'largest difference':>22}")
    for name, rate in rates.items():
        print(f"{name:24}{rate:12.0f}{rate / base:7.1f}x{worst.get(name, 0):22.1e}")


@contextmanager
def serving(repository: Path) -> Iterator[str]:
    """A server in a process of its own, ready; the address of its gRPC port. Stopped on leaving."""
    http_port, grpc_port = _free_ports(2)
    flags = [f"--http-port={http_port}", f"--grpc-port={grpc_port}", "--allow-metrics=false"]
    command = [sys.executable, "-m", "conch.cli.main", "serve", str(repository), *flags]
    log = repository.parent / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        _await_ready(process, http_port, log)
        yield f"127.0.0.1:{grpc_port}"
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def _await_ready(process: subprocess.Popen[bytes], port: int, log: Path, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
        try:
            connection.request("GET", "/v2/health/ready")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.05)
    raise SystemExit(f"the server is not ready; it wrote:\n{log.read_text(errors='replace')}")


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--concurrency", type=int, default=32, help="requests under way at a time (default 32)")
    parser.add_argument("--sentences", type=int, help="only the first so many of sentences.txt")
    parser.add_argument("--repeat", type=int, default=4, help="how often each sentence is sent in a round (default 4)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the race (default 3)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
