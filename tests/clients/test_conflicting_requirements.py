"""Two versions of scikit-learn in one server, each with the models that it has saved, and neither of them its own."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from tritonclient.utils import InferenceServerException

from support.environments import make_venv
from support.server import Server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

#: Model -> its requirements. scikit-learn 1.3 does not work with NumPy 2.
REQUIREMENTS = {"old": "scikit-learn==1.3.2\nnumpy==1.26.4\n", "new": "scikit-learn==1.6.1\nnumpy>=2,<3\n"}
#: The same trees, averaged in FP64.
TOLERANCE = 1e-6

#: Run in an environment of the requirements: the library called directly, before and without the server.
TRAIN = """
import sys
from pathlib import Path
import joblib, numpy, sklearn
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier

data = load_digits()
model = RandomForestClassifier(20, max_depth=8, random_state=0).fit(data.data[:1400], data.target[:1400])
folder = Path(sys.argv[1])
joblib.dump(model, folder / "estimator.joblib")
loaded = joblib.load(folder / "estimator.joblib")
numpy.savez(
    sys.argv[2], images=data.data[1400:].astype("float32"), probabilities=loaded.predict_proba(data.data[1400:]),
    versions=numpy.array([sklearn.__version__, numpy.__version__]),
)
"""
MODEL = """
import warnings
from pathlib import Path

import joblib
import numpy as np
import sklearn
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        # scikit-learn warns of models that another version has saved.
        warnings.simplefilter("error")
        self.model = joblib.load(Path(args["model_repository"]) / "1" / "estimator.joblib")

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
        versions = np.array([[sklearn.__version__.encode(), np.__version__.encode()]] * len(x), dtype=object)
        found = self.model.predict_proba(x)
        return pb_utils.InferenceResponse([pb_utils.Tensor("y", found), pb_utils.Tensor("versions", versions)])
"""
CONFIG = """
backend: "python"
max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [ 64 ] } ]
output [
  { name: "y" data_type: TYPE_FP64 dims: [ 10 ] },
  { name: "versions" data_type: TYPE_STRING dims: [ 2 ] }
]
dynamic_batching { }
"""


@dataclass
class Both:
    server: Server
    #: Model -> the images' probabilities, and the versions that gave them: scikit-learn's and NumPy's.
    direct: dict[str, Any]
    versions: dict[str, list[str]]
    images: Any

    def ask(self, client: Any, module: Any, model: str, begin: int, end: int) -> tuple[Any, list[list[str]]]:
        tensor = module.InferInput("x", [end - begin, 64], "FP32")
        tensor.set_data_from_numpy(self.images[begin:end])
        answer = client.infer(model, [tensor])
        return answer.as_numpy("y"), [[each.decode() for each in row] for row in answer.as_numpy("versions")]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    place = tmp_path_factory.mktemp("conflict")
    repository, direct, versions = place / "models", {}, {}
    for model, requirements in REQUIREMENTS.items():
        folder = lay(repository, model)
        (folder / "requirements.txt").write_text(requirements)
        environment = make_venv(place / model, *requirements.split())
        answers = place / f"{model}.npz"
        subprocess.run([environment / "bin" / "python", "-c", TRAIN, folder, answers], check=True, timeout=300)
        with np.load(answers) as file:
            images, direct[model], versions[model] = file["images"], file["probabilities"], file["versions"].tolist()
    (lay(repository, "alone") / "estimator.joblib").write_bytes(
        (repository / "old" / "1" / "estimator.joblib").read_bytes()
    )
    flags = ["--model-control-mode=explicit", "--load-model=old", "--load-model=new"]
    cache = f"--backend-config=python,environment-cache={place / 'cache'}"
    with Server(repository, *flags, cache, timeout=200) as server:
        yield Both(server, direct, versions, images)


def lay(repository: Path, model: str) -> Path:
    """The version folder of a model."""
    version = repository / model / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(MODEL)
    (repository / model / "config.pbtxt").write_text(CONFIG)
    return version


def test_the_requirements_conflict(both: Both) -> None:
    """No environment can hold what both ask for, down to NumPy's first number."""
    assert both.versions["old"][0] == "1.3.2"
    assert both.versions["new"][0] == "1.6.1"
    assert [both.versions[model][1].partition(".")[0] for model in ("old", "new")] == ["1", "2"]


def test_each_answers_by_its_own_library(both: Both) -> None:
    """Asked in turns at the same time, each says what its version of the library says, and which one that is."""

    def load(number: int) -> list[str]:
        chance, wrong = random.Random(number), []
        module = httpclient if number % 2 else grpcclient
        with module.InferenceServerClient(both.server.http if number % 2 else both.server.grpc) as client:
            for _ in range(40):
                model, begin, rows = chance.choice(["old", "new"]), chance.randrange(380), chance.randint(1, 8)
                found, versions = both.ask(client, module, model, begin, begin + rows)
                if versions != [both.versions[model]] * rows:
                    wrong.append(f"{model} ran in {versions}")
                if np.abs(found - both.direct[model][begin : begin + rows]).max() > TOLERANCE:
                    wrong.append(f"{model}: images {begin} to {begin + rows}")
        return wrong

    with ThreadPoolExecutor(4) as pool:
        assert [each for wrong in pool.map(load, range(4)) for each in wrong] == []


def test_in_the_servers_own_environment_it_would_not_load(both: Both) -> None:
    """The same model without requirements fails with the library's sentence, and the others go on."""
    with httpclient.InferenceServerClient(both.server.http) as client:
        with pytest.raises(InferenceServerException, match=r"InconsistentVersionWarning|No module named 'sklearn'"):
            client.load_model("alone")
        assert all(client.is_model_ready(model) for model in REQUIREMENTS)
