"""How fast a framework runs a network by itself: the most that any server around it could reach on this machine."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

CORES = len(os.sched_getaffinity(0))

#: One run of a caller's input.
Run = Callable[[], object]
#: Opens a model for so many callers of so many threads; gives each caller its run of an input.
Open = Callable[[Path, int, int], Callable[[np.ndarray[Any, Any]], Run]]


@dataclass(frozen=True, slots=True)
class Way:
    """A way to use the machine: so many callers at once, each with its threads, so many rows a run."""

    callers: int
    threads: int
    rows: int

    def __str__(self) -> str:
        return f"{self.callers} x {self.threads} threads, {self.rows} rows"


@dataclass(frozen=True, slots=True)
class Rate:
    """Rows per second, and microseconds of CPU time per row."""

    per_second: float
    cpu_us: float


def ways(concurrency: int) -> list[Way]:
    """What may be best; never more rows at a time than clients ask for: nobody can batch what was not sent."""
    found = [Way(callers, CORES // callers, rows) for callers in {CORES, 1} for rows in (1, 4, 8)]
    return [way for way in found if way.callers * way.rows <= concurrency]


def open_onnx(place: Path, _callers: int, threads: int) -> Callable[[np.ndarray[Any, Any]], Run]:
    import onnxruntime as ort

    def caller(rows: np.ndarray[Any, Any]) -> Run:
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        session = ort.InferenceSession(str(place / "1" / "model.onnx"), options, providers=["CPUExecutionProvider"])
        return partial(session.run, None, {session.get_inputs()[0].name: rows})

    return caller


def open_openvino(place: Path, callers: int, threads: int) -> Callable[[np.ndarray[Any, Any]], Run]:
    import openvino as ov

    core = ov.Core()
    options = {
        "INFERENCE_PRECISION_HINT": "f32",
        "NUM_STREAMS": callers,
        "INFERENCE_NUM_THREADS": callers * threads,
        "ENABLE_CPU_PINNING": False,
    }
    compiled = core.compile_model(core.read_model(place / "1" / "model.xml"), "CPU", options)

    def caller(rows: np.ndarray[Any, Any]) -> Run:
        request = compiled.create_infer_request()
        request.set_input_tensor(ov.Tensor(rows, shared_memory=True))
        return partial(request.infer, share_outputs=True)

    return caller


def open_torch(place: Path, _callers: int, threads: int) -> Callable[[np.ndarray[Any, Any]], Run]:
    import torch

    model = torch.jit.load(str(place / "1" / "model.pt")).eval()
    with torch.no_grad():
        # Its best: the server does it at load, too.
        model = torch.jit.optimize_for_inference(torch.jit.freeze(model))
    torch.set_num_threads(threads)

    def caller(rows: np.ndarray[Any, Any]) -> Run:
        tensor = torch.from_numpy(rows)

        def run() -> None:
            with torch.inference_mode():
                model(tensor)

        return run

    return caller


OPENERS: dict[str, Open] = {"onnx": open_onnx, "openvino": open_openvino, "torch": open_torch}


def best_way(framework: str, place: Path, example: Callable[[int], Any], seconds: float, tried: Iterable[Way]) -> Way:
    rates = {way: measure(framework, place, example, seconds, way).per_second for way in tried}
    return max(rates, key=rates.__getitem__)


def measure(framework: str, place: Path, example: Callable[[int], Any], seconds: float, way: Way) -> Rate:
    """One measurement of `seconds`. `example` makes an input of so many rows."""
    caller = OPENERS[framework](place, way.callers, way.threads)
    runs = [caller(example(way.rows)) for _ in range(way.callers)]
    done = [0] * way.callers
    started = threading.Barrier(way.callers + 1)
    stop = threading.Event()

    def work(index: int, run: Run) -> None:
        for _ in range(3):
            run()
        started.wait()
        while not stop.is_set():
            run()
            done[index] += way.rows

    pool = [threading.Thread(target=work, args=pair) for pair in enumerate(runs)]
    for thread in pool:
        thread.start()
    started.wait()
    begin, cpu = time.monotonic(), time.process_time()
    time.sleep(seconds)
    stop.set()
    for thread in pool:
        thread.join()
    total = max(1, sum(done))
    return Rate(total / (time.monotonic() - begin), (time.process_time() - cpu) * 1e6 / total)
