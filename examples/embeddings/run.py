"""Serves the embedding pipeline and compares it with the original library: the same vectors, and how fast."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc.aio as grpcclient

from build import build, original
from reference import Library

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from serving import serving

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
        _, url = stack.enter_context(serving(place / "repository", place / "server.log"))
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


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--concurrency", type=int, default=32, help="requests under way at a time (default 32)")
    parser.add_argument("--sentences", type=int, help="only the first so many of sentences.txt")
    parser.add_argument("--repeat", type=int, default=4, help="how often each sentence is sent in a round (default 4)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the race (default 3)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
