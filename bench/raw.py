"""How fast ONNX Runtime runs a model by itself on this machine: the most that any server around it could reach."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

CORES = len(os.sched_getaffinity(0))


def best_rate(model: Path, shape: tuple[int, ...], seconds: float, concurrency: int) -> tuple[float, str]:
    """Rows per second of the best way to use all cores, and which way that was.

    Tried are one thread per session with a session per core, and one session over all cores; with 1, 4 and 8 rows per
    run, but never more rows at a time than the `concurrency` that the server is driven with: a server cannot batch
    requests that nobody has sent. `shape` is one row's.
    """
    tries = {
        f"{sessions} x {threads} threads, {rows} rows": _rate(model, shape, sessions, threads, rows, seconds)
        for sessions, threads in {(CORES, 1), (1, CORES)}
        for rows in (1, 4, 8)
        if sessions * rows <= concurrency
    }
    best = max(tries, key=tries.__getitem__)
    return tries[best], best


def _rate(model: Path, shape: tuple[int, ...], sessions: int, threads: int, rows: int, seconds: float) -> float:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    workers = [ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"]) for _ in range(sessions)]
    name = workers[0].get_inputs()[0].name
    feed = {name: np.random.default_rng(1).standard_normal((rows, *shape), dtype=np.float32)}
    done = [0] * sessions
    started = threading.Barrier(sessions + 1)
    stop = threading.Event()

    def work(index: int, session: Any) -> None:
        session.run(None, feed)
        started.wait()
        while not stop.is_set():
            session.run(None, feed)
            done[index] += rows

    pool = [threading.Thread(target=work, args=pair) for pair in enumerate(workers)]
    for thread in pool:
        thread.start()
    started.wait()
    begin = time.monotonic()
    time.sleep(seconds)
    rate = sum(done) / (time.monotonic() - begin)
    stop.set()
    for thread in pool:
        thread.join()
    return rate
