"""The benchmark's models for scheduling compute what their names say, in the form that both servers are given."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient

from pipelines import CACHE_FLAGS
from repositories import write_repositories
from support.server import Server

pytestmark = pytest.mark.slow

MODELS = {"ensemble", "bls", "bls_async", "sequence", "cached", "delay"}
ROW = np.arange(16, dtype=np.float32).reshape(1, 16)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[grpcclient.InferenceServerClient]:
    repository, _ = write_repositories(tmp_path_factory.mktemp("bench"), MODELS)
    with Server(repository, *CACHE_FLAGS) as server, grpcclient.InferenceServerClient(server.grpc) as client:
        yield client


def infer(client: grpcclient.InferenceServerClient, model: str, row: np.ndarray[Any, Any], **rest: Any) -> Any:
    tensor = grpcclient.InferInput("INPUT0", list(row.shape), "FP32")
    tensor.set_data_from_numpy(row)
    return client.infer(model, [tensor], client_timeout=20, **rest).as_numpy("OUTPUT0")


@pytest.mark.parametrize("model", ["ensemble", "bls", "bls_async"])
def test_three_steps(client: grpcclient.InferenceServerClient, model: str) -> None:
    """Each step adds one."""
    np.testing.assert_array_equal(infer(client, model, ROW), ROW + 3)


def test_sums_of_sequences(client: grpcclient.InferenceServerClient) -> None:
    """Sequences that alternate keep their own sums, and a number may be used again."""
    for _ in range(2):
        for turn in range(3):
            for number in (1, 2):
                flags = {"sequence_start": turn == 0, "sequence_end": turn == 2}
                found = infer(client, "sequence", number * ROW, sequence_id=number, **flags)
                np.testing.assert_array_equal(found, (turn + 1) * number * ROW)


def test_the_cache_answers(client: grpcclient.InferenceServerClient) -> None:
    """The same request is executed once."""
    for _ in range(3):
        np.testing.assert_array_equal(infer(client, "cached", ROW), ROW + 1)
    (found,) = client.get_inference_statistics("cached", as_json=True)["model_stats"]
    assert found["inference_stats"]["cache_hit"]["count"] == "2"
    assert found["execution_count"] == "1"


def test_the_queue_delay(client: grpcclient.InferenceServerClient) -> None:
    """A lone request is answered when the delay is over."""
    np.testing.assert_array_equal(infer(client, "delay", ROW), ROW + 1)
