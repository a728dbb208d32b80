"""`conch demo`: trains a digit classifier, serves it, and classifies handwriting that it has never seen."""

from __future__ import annotations

import argparse
import http.client
import json
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from conch.cli.digits import MODEL, Digits, show_images, train, write_repository

WANTED_ACCURACY: Final = 0.97
PACKAGES: Final = ("sklearn", "skl2onnx", "onnxruntime", "tritonclient.http", "tritonclient.grpc")

#: Takes images of shape [n, 64] and gives the digit of each.
Classify = Callable[[Any], Sequence[int]]


class DemoError(Exception):
    """The demo cannot go on; the text is for the person at the terminal."""


@dataclass(slots=True)
class Tally:
    """What one protocol answered: `answers[i]` for image i in the first round, and how many of all were right."""

    answers: dict[int, int] = field(default_factory=dict)
    sent: int = 0
    right: int = 0
    seconds: float = 0.0

    @property
    def accuracy(self) -> float:
        return self.right / self.sent if self.sent else 0.0


def main(argv: Sequence[str]) -> int:
    """Exit code 0 when both protocols reach the accuracy, 1 when something failed, 2 when packages are missing."""
    options = _parser().parse_args(argv)
    console = Console(highlight=False)
    missing = [name for name in PACKAGES if not _importable(name)]
    if missing:
        console.print(f"[red]conch demo needs packages that are not installed:[/] {', '.join(missing)}")
        console.print("install them with: pip install 'conch\\[demo]'")
        return 2
    try:
        with ExitStack() as stack:
            folder = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="conch-demo-")))
            return _demonstrate(console, folder, options, stack)
    except DemoError as error:
        console.print(f"[red]the demo failed:[/] {error}")
        return 1
    except KeyboardInterrupt:
        console.print("stopped")
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="conch demo", description=__doc__)
    parser.add_argument("--brief", action="store_true", help="print the mistakes and a few others, not every image")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="write the model repository and the log here")
    parser.add_argument("--rounds", type=_count, default=3, help="how often each image is sent (default 3)")
    parser.add_argument("--threads", type=_count, default=8, help="clients of each protocol (default 8)")
    return parser


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text}")
    return number


def _importable(name: str) -> bool:
    try:
        __import__(name)
    except ImportError:
        return False
    return True


def _demonstrate(console: Console, folder: Path, options: argparse.Namespace, stack: ExitStack) -> int:
    with console.status("training a classifier on scikit-learn's handwritten digits ..."):
        model, digits = train()
        repository = folder / "repository"
        size = write_repository(repository, model)
    console.print(
        f"1. trained and exported: [bold]{repository / MODEL}/1/model.onnx[/], {size:,} bytes, no config.pbtxt"
    )
    with console.status("starting the server ..."):
        http_port, grpc_port = stack.enter_context(serving(repository, folder / "server.log"))
    console.print(f"2. serving: HTTP 127.0.0.1:{http_port}, gRPC 127.0.0.1:{grpc_port}")
    console.print(
        f"3. sending {len(digits.images)} unseen images, {options.rounds} times each, one per request, "
        f"from {options.threads} HTTP and {options.threads} gRPC clients at once"
    )
    clients = {"HTTP": http_classifier(http_port), "gRPC": grpc_classifier(grpc_port)}
    began = time.perf_counter()
    tallies = classify_all(console, digits, clients, options.rounds, options.threads)
    seconds = time.perf_counter() - began
    show_images(console, digits, tallies["HTTP"].answers, brief=options.brief)
    return report(console, tallies, seconds, statistics(http_port))


@contextmanager
def serving(repository: Path, log: Path) -> Iterator[tuple[int, int]]:
    """A server in a process of its own, ready; its HTTP and gRPC ports. Stopped on leaving."""
    http_port, grpc_port = _free_ports(2)
    flags = [
        f"--http-port={http_port}",
        f"--grpc-port={grpc_port}",
        "--http-address=127.0.0.1",
        "--grpc-address=127.0.0.1",
        "--allow-metrics=false",
        # Models that do not say how far they batch: up to 32 instead of Triton's 4.
        "--backend-config=onnxruntime,default-max-batch-size=32",
    ]
    with log.open("wb") as output:
        command = [sys.executable, "-m", "conch.cli.main", "serve", str(repository), *flags]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)  # noqa: S603
    try:
        _await_ready(process, http_port, log)
        yield http_port, grpc_port
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await_ready(process: subprocess.Popen[bytes], port: int, log: Path, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            if _get(port, f"/v2/models/{MODEL}/ready")[0] == 200:
                return
        except OSError:
            pass
        if process.poll() is not None:
            raise DemoError(f"the server ended with exit code {process.returncode}:\n{_tail(log)}")
        if time.monotonic() > deadline:
            raise DemoError(f"the server was not ready within {seconds:g} s:\n{_tail(log)}")
        time.sleep(0.02)


def _get(port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-20:])


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def http_classifier(port: int) -> Callable[[], Classify]:
    from tritonclient import http as client  # noqa: PLC0415

    return lambda: _classifier(client, client.InferenceServerClient(f"127.0.0.1:{port}"))


def grpc_classifier(port: int) -> Callable[[], Classify]:
    from tritonclient import grpc as client  # noqa: PLC0415

    return lambda: _classifier(client, client.InferenceServerClient(f"127.0.0.1:{port}"))


def _classifier(client: Any, connection: Any) -> Classify:
    """`client` is tritonclient's module of one protocol, `connection` one of its clients: one thread's own."""

    def classify(images: Any) -> Sequence[int]:
        tensor = client.InferInput("image", list(images.shape), "FP32")
        tensor.set_data_from_numpy(images)
        result = connection.infer(MODEL, [tensor], outputs=[client.InferRequestedOutput("label")])
        return [int(digit) for digit in result.as_numpy("label").reshape(-1)]

    return classify


def classify_all(
    console: Console, digits: Digits, clients: dict[str, Callable[[], Classify]], rounds: int, threads: int
) -> dict[str, Tally]:
    """Every image through every protocol, `threads` clients of each at the same time."""
    columns = (TextColumn("   {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    tallies = {name: Tally() for name in clients}
    errors: list[str] = []
    with Progress(*columns, console=console) as progress:
        workers = []
        for name, connect in clients.items():
            task = progress.add_task(name, total=len(digits.images) * rounds)
            work = _Work(digits, tallies[name], rounds, partial(progress.advance, task))
            workers += [
                threading.Thread(target=_work, args=(name, work, connect, errors), daemon=True) for _ in range(threads)
            ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    if errors:
        raise DemoError(errors[0])
    return tallies


class _Work:
    """The images still to be sent over one protocol, shared by its threads."""

    def __init__(self, digits: Digits, tally: Tally, rounds: int, advance: Callable[[], None]) -> None:
        self.digits = digits
        self._tally = tally
        self._left = iter([index for _ in range(rounds) for index in range(len(digits.images))])
        self._advance = advance
        self._lock = threading.Lock()
        self._began = time.perf_counter()

    def take(self) -> int | None:
        with self._lock:
            return next(self._left, None)

    def stop(self) -> None:
        with self._lock:
            self._left = iter(())

    def settle(self, index: int, answer: int) -> None:
        with self._lock:
            tally = self._tally
            tally.answers.setdefault(index, answer)
            tally.sent += 1
            tally.right += answer == self.digits.truth[index]
            tally.seconds = time.perf_counter() - self._began
        self._advance()


def _work(name: str, work: _Work, connect: Callable[[], Classify], errors: list[str]) -> None:
    """One client's thread."""
    try:
        classify = connect()
        while (index := work.take()) is not None:
            work.settle(index, classify(work.digits.images[index : index + 1])[0])
    except Exception as error:  # noqa: BLE001  whatever a client raises ends the demo
        errors.append(f"a request over {name} failed: {error}")
        work.stop()


def statistics(port: int) -> tuple[int, int]:
    """How many images the model has classified, and in how many executions."""
    status, body = _get(port, f"/v2/models/{MODEL}/stats")
    if status != 200:
        raise DemoError(f"the statistics answered {status}: {body.decode(errors='replace')}")
    (model,) = json.loads(body)["model_stats"]
    return int(model["inference_count"]), int(model["execution_count"])


def report(console: Console, tallies: dict[str, Tally], seconds: float, counts: tuple[int, int]) -> int:
    """The table and the verdict; the exit code."""
    table = Table("protocol", "requests", "right", "accuracy", "requests/s")
    for name, tally in tallies.items():
        rate = f"{tally.sent / tally.seconds:,.0f}"
        table.add_row(name, f"{tally.sent:,}", f"{tally.right:,}", f"{tally.accuracy:.2%}", rate)
    console.print(table)
    inferences, executions = counts
    total = sum([tally.sent for tally in tallies.values()])
    console.print(
        f"throughput {total / seconds:,.0f} images/s, mean batch size {inferences / max(1, executions):.2f} "
        f"({inferences:,} images in {executions:,} executions)"
    )
    good = all(tally.accuracy >= WANTED_ACCURACY for tally in tallies.values())
    parts = " and ".join([f"{tally.accuracy:.2%} over {name}" for name, tally in tallies.items()])
    if good:
        console.print(f"[bold green]the demo passed:[/] {parts} of unseen handwriting read correctly")
    else:
        console.print(
            f"[bold red]the demo failed:[/] {parts} read correctly, at least {WANTED_ACCURACY:.0%} was expected"
        )
    return 0 if good else 1
