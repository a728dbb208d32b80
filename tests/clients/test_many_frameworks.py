"""Every framework that is installed in one server: a mixed load with reloads, pipelines that cross three of them."""

from __future__ import annotations

import random
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from support.digit_zoo import MODELS, TOLERANCE, Zoo, train
from support.server import Server
from support.until import until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(find_spec("sklearn") is None, reason="scikit-learn is not installed: it has the digits"),
]

#: Reloaded under load, with another training: two in the server's threads, one in a worker process.
RELOADED = {"onnx": "model.onnx", "lightgbm": "model.txt", "sklearn": "estimator.joblib"}
PIPELINES = pytest.mark.parametrize("pipeline", ["pipeline", "pipeline_bls"])
#: How long the load goes on at least.
SECONDS = 5.0


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zoo]:
    repository = tmp_path_factory.mktemp("many") / "models"
    trained = train(repository)
    images, labels = trained.pop("images"), trained.pop("labels")
    if "pipeline" in trained:
        trained["pipeline_bls"] = trained["pipeline"]
    answers = {model: (each.astype(np.float32),) for model, each in trained.items()}
    with Server(repository, "--model-control-mode=explicit", "--load-model=*", timeout=300) as server:
        yield Zoo(server, repository, images, labels, answers)


def needed(zoo: Zoo, model: str) -> None:
    if model not in zoo.answers:
        pytest.skip(f"{MODELS[model][0]} is not installed")


@pytest.mark.parametrize("model", MODELS)
def test_each_framework_beside_the_others(zoo: Zoo, model: str) -> None:
    """A model answers as its framework does, in the backend that is its framework's, and it has learned something."""
    needed(zoo, model)
    with zoo.client("grpc") as client:
        assert client.get_model_config(model, as_json=True)["config"].get("backend", "") == MODELS[model][1]
        found = np.concatenate([zoo.ask(client, model, at, at + 4) for at in range(0, len(zoo.images), 4)])
    np.testing.assert_allclose(found, zoo.answers[model][0], rtol=0, atol=TOLERANCE)
    assert (found.argmax(1) == zoo.labels).mean() > 0.85


def test_at_least_five(zoo: Zoo) -> None:
    """Frameworks of five libraries or more, where they are installed, answer in one server."""
    libraries = {MODELS[model][0] for model in zoo.answers}
    if len(libraries) < 5:
        pytest.skip(f"only {', '.join(sorted(libraries))} are installed")
    with zoo.client("http") as client:
        assert all(client.is_model_ready(model) for model in zoo.answers)


def test_a_mixed_load_with_reloads(zoo: Zoo, tmp_path: Path) -> None:
    """Random models and batch sizes over both protocols: each answer is right, and none fails while models change."""
    reloaded = {model: file for model, file in RELOADED.items() if model in zoo.answers}
    others = train(tmp_path / "others", *reloaded, seed=1)
    with zoo.client("http") as client:
        before = {model: _counts(client, model)[0] for model in zoo.answers}
    enough, stop, wrong = threading.Event(), threading.Event(), list[str]()

    counters = [Counter[str]() for _ in range(6)]

    def load(number: int) -> None:
        """One client, until it is told to stop."""
        chance, models, mine = random.Random(number), sorted(zoo.answers), counters[number]
        with zoo.client("http" if number % 2 else "grpc") as client:
            while not stop.is_set():
                model, begin, rows = chance.choice(models), chance.randrange(390), chance.randint(1, 4)
                if said := zoo.compare(client, model, begin, begin + rows):
                    wrong.append(said)
                mine[model] += 1

    timer = threading.Timer(SECONDS, enough.set)
    timer.start()
    with ThreadPoolExecutor(6) as pool:
        clients = [pool.submit(load, number) for number in range(6)]
        try:
            for model, file in reloaded.items():
                _replace(zoo, model, tmp_path / "others" / model / "1" / file, others[model].astype(np.float32))
            enough.wait()
            # Each client asks for a model of its own choice.
            until(lambda: wrong != [] or all(any(each[model] for each in counters) for model in zoo.answers), 100)
        finally:
            stop.set()
        for each in clients:
            each.result()
    timer.join()
    assert wrong == []
    done = sum(counters, Counter[str]())
    with zoo.client("http") as client:
        for model in zoo.answers:
            if model not in RELOADED:
                # Instances count when they have answered.
                until(lambda: _counts(client, model)[0] - before[model] >= done[model])  # noqa: B023
                assert _counts(client, model)[0] - before[model] == done[model], model
            assert _counts(client, model)[1] == 0, model
        for model in reloaded:
            assert np.abs(zoo.ask(client, model, 0, 4) - others[model][:4]).max() < TOLERANCE


def _replace(zoo: Zoo, model: str, file: Path, answers: np.ndarray) -> None:
    """Another training in the place of a model that is asked all the time."""
    (old,) = zoo.answers[model]
    assert np.abs(old - answers).max() > 100 * TOLERANCE
    zoo.answers[model] = (old, answers)
    shutil.copy(file, zoo.repository / model / "1" / file.name)
    with zoo.client("http") as client:
        client.load_model(model)
    # What is asked from now on has the new one's answers.
    zoo.answers[model] = (answers,)


def _counts(client: Any, model: str) -> tuple[int, int]:
    """Requests that were answered, and that failed."""
    (found,) = client.get_inference_statistics(model)["model_stats"]
    return int(found["inference_stats"]["success"]["count"]), int(found["inference_stats"]["fail"]["count"])


@PIPELINES
def test_a_pipeline_is_its_chain(zoo: Zoo, pipeline: str) -> None:
    """Bytes through Python, ONNX Runtime and a forest give what the three libraries give, called by hand."""
    needed(zoo, pipeline)
    with ThreadPoolExecutor(8) as pool, zoo.client("grpc") as client:
        wrong = list(pool.map(lambda at: zoo.compare(client, pipeline, at, at + 1 + at % 5), range(120)))
    assert set(wrong) == {""}
    with zoo.client("http") as web:
        assert zoo.compare(web, pipeline, 0, 32) == ""


def test_both_pipelines_give_the_same_bits(zoo: Zoo) -> None:
    """The ensemble and the Python model ask the same models."""
    needed(zoo, "pipeline")
    with zoo.client("grpc") as client:
        ensemble, python = (zoo.ask(client, model, 7, 27) for model in ("pipeline", "pipeline_bls"))
    assert ensemble.tobytes() == python.tobytes()


@PIPELINES
def test_a_file_that_is_no_image(zoo: Zoo, pipeline: str) -> None:
    """The first step's sentence is the pipeline's, and the next request is answered."""
    needed(zoo, pipeline)
    tensor = grpcclient.InferInput("image", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[b"\x89PNG\r\n\x1a\n\x00"]], dtype=object))
    with zoo.client("grpc") as client:
        with pytest.raises(InferenceServerException, match="'image' must be a PGM file of 8 x 8 pixels, it begins"):
            client.infer(pipeline, [tensor])
        assert zoo.compare(client, pipeline, 0, 3) == ""


def test_the_server_stops_in_good_order(zoo: Zoo) -> None:
    """Last: with all frameworks loaded it leaves with exit code 0, leaves no worker behind, and nothing has crashed."""
    workers = psutil.Process(zoo.server.process.pid).children(recursive=True)
    assert workers
    assert zoo.server.stop() == 0
    _, alive = psutil.wait_procs(workers, timeout=60)
    left = []
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            left.append(process.cmdline())
    assert left == []
    assert "Traceback" not in zoo.server.log
