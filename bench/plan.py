"""What is measured: the workloads, the goals that the ratios are held against, and how long it may take."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from figures import Goal, at_least, at_most
from load import Workload
from pipelines import CACHE_FLAGS

#: The identity models: 16 floats in, the same out.
BODY = json.dumps({"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [1, 16], "data": list(range(16))}]})

#: As many numbers as an image of 224 x 224 in three colours has, with the digits that pixels have.
IMAGE_BODY = json.dumps(
    {
        "inputs": [
            {
                "name": "INPUT0",
                "datatype": "FP32",
                "shape": [1, 3, 224, 224],
                "data": [n % 256 / 256 for n in range(150_528)],
            }
        ]
    }
)

MANY = {"throughput": at_least(1.7), "p99_us": at_most(1.0), "cpu_us": at_most(0.35)}
ONE = {"p50_us": at_most(0.6), "p99_us": at_most(1.0)}
JSON = {"throughput": at_least(2.5), "p99_us": at_most(1.0)}
LARGE = {"throughput": at_least(1.2)}
TWICE = {"throughput": at_least(2.0)}
THRICE = {"throughput": at_least(3.0)}
#: Three steps of Python models behind one name: one caller waits half as long, many get three times as much.
STEPS_ONE = {"p50_us": at_most(0.5)}
STEPS = {"throughput": at_least(3.0), "p50_us": at_most(0.5)}
#: What the same queue delay is good for: batches as full as Triton's.
FULL = {"batch": at_least(0.95)}


@dataclass(frozen=True, slots=True)
class Planned:
    """A workload and its goals: figure -> what the median ratio Conch / Triton must be."""

    workload: Workload
    goals: Mapping[str, Goal]
    #: Part of the plan's seconds that a run of it gets.
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class Plan:
    """Rounds per workload, and seconds per run, per warm-up (0: none) and per way of running the raw model."""

    rounds: int = 4
    seconds: float = 4.0
    warm_seconds: float = 1.0
    raw_seconds: float = 2.0

    @classmethod
    def quick(cls) -> Self:
        return cls(rounds=2, seconds=0.9, warm_seconds=0.0, raw_seconds=0.7)

    def with_rounds(self, rounds: int) -> Self:
        return replace(self, rounds=rounds)


def _planned(name: str, tool: str, concurrency: int, goals: Mapping[str, Goal], model: str = "identity") -> Planned:
    body = BODY if tool == "json" else ""
    return Planned(Workload(f"{name} c={concurrency}", tool, model, concurrency, body=body), goals)


def _more(name: str, tool: str, model: str, concurrency: int, goals: Mapping[str, Goal], **rest: Any) -> Planned:
    """One of the workloads that are about one thing each: a shorter run tells enough."""
    pace = f"{rest['rate']}/s" if "rate" in rest else f"c={concurrency}"
    return Planned(Workload(f"{name} {pace}", tool, model, concurrency, **rest), goals, share=0.5)


WORKLOADS = (
    _planned("grpc", "grpc", 1, ONE),
    _planned("grpc", "grpc", 16, MANY),
    _planned("grpc", "grpc", 64, MANY),
    _planned("http", "http", 1, ONE),
    _planned("http", "http", 16, MANY),
    _planned("http", "http", 64, MANY),
    _planned("json", "json", 16, JSON),
    _planned("json", "json", 64, JSON),
    _planned("cnn", "grpc", 8, {"p99_us": at_most(1.0)}, model="cnn"),
    *(_more(f"image-{tool}", tool, "image", c, LARGE) for tool in ("grpc", "http") for c in (1, 4, 16)),
    _more("16mb-grpc", "h2load", "large", 2, LARGE, shape=(4 << 20,)),
    _more("16mb-http", "h2load --h1", "large", 2, LARGE, shape=(4 << 20,)),
    _more("image-json", "json", "image", 2, TWICE, body=IMAGE_BODY),
    *(_more(f"strings-{tool}", tool, "strings", 4, {}, options=("--string-length=16",)) for tool in ("grpc", "http")),
    *(_more("stream", "grpc", "stream", c, TWICE, options=("--streaming",), responses=100) for c in (1, 8)),
    _more("idle-1000", "json", "identity", 64, {"throughput": at_least(2.5)}, body=BODY, idle=1000),
    # perf_analyzer spends as much CPU time per request as the servers: with 16 at a time a leaner tool drives them.
    _more("ensemble", "grpc", "ensemble", 1, STEPS_ONE),
    _more("ensemble", "h2load", "ensemble", 16, STEPS, shape=(1, 16)),
    _more("ensemble", "h2load", "ensemble", 64, STEPS, shape=(1, 16)),
    _more("bls", "grpc", "bls", 1, STEPS_ONE),
    _more("bls", "h2load", "bls", 16, THRICE, shape=(1, 16)),
    _more("bls-async", "h2load", "bls_async", 16, THRICE, shape=(1, 16)),
    _more("bls-async", "h2load", "bls_async", 64, THRICE, shape=(1, 16)),
    _more("sequence", "grpc", "sequence", 32, TWICE, options=("--sequence-length=20",)),
    _more("sequence-http", "wrk sequences", "sequence", 32, TWICE),
    _more("cache-hit", "json", "cached", 16, TWICE, body=BODY, flags=CACHE_FLAGS),
    _more("cache-hit-grpc", "h2load", "cached", 16, TWICE, shape=(1, 16), flags=CACHE_FLAGS),
    *(_more(f"cache-image-{tool}", tool, "cached_image", 4, TWICE, flags=CACHE_FLAGS) for tool in ("grpc", "http")),
    _more("batcher", "grpc", "delay", 32, FULL),
    _more("batcher", "grpc", "delay", 0, FULL, rate=2000),
)
