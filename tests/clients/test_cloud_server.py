"""A server whose models lie in a storage: started, asked, reloaded, polled, with folders beside it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from support.clouds import AZURE_ACCOUNT, AZURE_KEY, S3, Azure, Gcs, wire_to
from support.server import Server, ServerError
from support.until import until

pytest.importorskip("s3fs")
#: Azurite may have to be installed first.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

CONFIG = """
backend: "python"
max_batch_size: 4
input { name: "X" data_type: TYPE_FP32 dims: 1 }
output { name: "Y" data_type: TYPE_FP32 dims: 1 }
"""


def model(factor: float) -> str:
    return f"""
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        arrays = [pb_utils.get_input_tensor_by_name(request, "X").as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("Y", array * {factor})]) for array in arrays]
"""


def ask(server: Server, name: str = "m") -> float:
    body = {"inputs": [{"name": "X", "datatype": "FP32", "shape": [1, 1], "data": [1.0]}]}
    answer = requests.post(f"http://{server.http}/v2/models/{name}/infer", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    value: float = answer.json()["outputs"][0]["data"][0]
    return value


def load(server: Server, name: str = "m") -> requests.Response:
    return requests.post(f"http://{server.http}/v2/repository/models/{name}/load", json={}, timeout=60)


def index(server: Server) -> dict[str, str]:
    rows = requests.post(f"http://{server.http}/v2/repository/index", json={}, timeout=60).json()
    return {row["name"]: row.get("state", "") for row in rows}


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    server = S3()
    yield server
    server.close()


def started(url: str, cache: Path, *flags: str, env: dict[str, str] | None = None) -> Server:
    me = {"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "do-not-show", **(env or {})}
    return Server(url, f"--repository-cache={cache}", *flags, env=me)


def test_models_are_served_and_reloaded_from_s3(s3: S3, tmp_path: Path) -> None:
    """A load takes what has changed, brings nothing when nothing has, and a broken one leaves the old one serving."""
    s3.put({"a/m/config.pbtxt": CONFIG, "a/m/1/model.py": model(2), "a/late/config.pbtxt": CONFIG})
    flags = ("--model-control-mode=explicit", "--load-model=m")
    with started(f"{s3.url}/a", tmp_path, *flags) as server:
        assert ask(server) == 2.0
        # The log's own thread may write later than the answer leaves.
        until(lambda: "successfully loaded 'm'" in server.log)
        options = next(line for line in server.log.splitlines() if "model_repository_path[0]" in line)
        assert f"{s3.url}/a" in options
        assert server.log.count("downloaded 'm'") == 1
        assert load(server).status_code == 200
        assert server.log.count("successfully loaded 'm'") == 1
        s3.put({"a/m/1/model.py": "not Python"})
        refused = load(server)
        assert refused.status_code == 400
        assert ask(server) == 2.0
        s3.put({"a/m/1/model.py": model(3)})
        assert load(server).status_code == 200
        assert ask(server) == 3.0
        s3.put({"a/late/1/model.py": model(4)})
        assert load(server, "late").status_code == 200
        assert ask(server, "late") == 4.0
        until(lambda: set(index(server)) == {"m", "late"})
        requests.post(f"http://{server.http}/v2/repository/models/late/unload", json={}, timeout=60)
        assert "do-not-show" not in server.log
    downloads = server.log.count("downloaded ")
    assert downloads == 4
    assert list((tmp_path / "views").iterdir()) == []
    # What lies there serves the next server.
    with started(f"{s3.url}/a", tmp_path) as server:
        assert (ask(server), ask(server, "late")) == (3.0, 4.0)
        assert "downloaded" not in server.log


def test_a_storage_that_goes_away_leaves_models_serving(s3: S3, tmp_path: Path) -> None:
    """Loads fail with the reason, the loaded models answer, the index shows them, and the server stops in time."""
    s3.put({"b/m/config.pbtxt": CONFIG, "b/m/1/model.py": model(2)})
    with wire_to(s3.port) as wire:
        flags = ("--model-control-mode=explicit", "--load-model=*")
        with started(f"s3://http://127.0.0.1:{wire.port}/models/b", tmp_path, *flags) as server:
            wire.broken = True
            refused = load(server)
            assert refused.status_code == 500
            assert "failed to poll from model repository" in refused.json()["error"]
            # The log's own thread may write later than the answer leaves.
            unread = f"failed to read model repository s3://http://127.0.0.1:{wire.port}/models/b"
            until(lambda: unread in server.log)
            assert (ask(server), index(server)) == (2.0, {"m": "READY"})
            wire.broken, wire.stuck = False, True
            with pytest.raises(requests.Timeout):
                requests.post(f"http://{server.http}/v2/repository/models/m/load", json={}, timeout=0.5)
            begun = time.monotonic()
            server.stop()
            # Less than --exit-timeout-secs.
            assert time.monotonic() - begun < 25


def test_a_storage_that_cannot_be_reached_ends_the_start(tmp_path: Path) -> None:
    """As with Triton, unless --exit-on-error=false: then the server runs and says why it has no models."""
    server = started("s3://127.0.0.1:1/models", tmp_path)
    assert server.wait() == 1
    assert "error: creating server: Internal - failed to read model repository s3://127.0.0.1:1/models: " in server.log
    server.close()
    patient = started("s3://127.0.0.1:1/models", tmp_path, "--exit-on-error=false")
    with patient as server:
        assert index(server) == {}
        until(lambda: "failed to read model repository s3://127.0.0.1:1/models: " in server.log)


def test_folders_gcs_and_azure_in_one_server(tmp_path: Path) -> None:
    """Repositories of three kinds, with credentials of Triton's file, are one; a name in two of them is refused."""
    gcs, azure = Gcs(), Azure(tmp_path)
    try:
        near = tmp_path / "models"
        for name, factor in (("near", 2), ("both", 9)):
            (near / name / "1").mkdir(parents=True)
            (near / name / "config.pbtxt").write_text(CONFIG)
            (near / name / "1" / "model.py").write_text(model(factor))
        gcs.put({"r/google/config.pbtxt": CONFIG, "r/google/1/model.py": model(3)})
        azure.put({"r/both/config.pbtxt": CONFIG, "r/both/1/model.py": model(9)})
        azure.put({"r/azure/config.pbtxt": CONFIG, "r/azure/1/model.py": model(4)})
        credentials = tmp_path / "credentials.json"
        key = {"account_str": AZURE_ACCOUNT, "account_key": AZURE_KEY}
        wrong = {"account_str": AZURE_ACCOUNT, "account_key": "d3Jvbmc="}
        credentials.write_text(json.dumps({"gs": {"": ""}, "as": {"": wrong, f"{azure.url}/r": key}}))
        env = {"TRITON_CLOUD_CREDENTIAL_PATH": str(credentials), "STORAGE_EMULATOR_HOST": gcs.endpoint}
        flags = ("--model-repository=gs://models/r", f"--model-repository={azure.url}/r", "--exit-on-error=false",
                 "--strict-readiness=false")  # fmt: skip
        with started(str(near), tmp_path / "cache", *flags, env=env) as server:
            assert [ask(server, name) for name in ("near", "google", "azure")] == [2.0, 3.0, 4.0]
            assert index(server)["both"] == "UNAVAILABLE"
            until(lambda: "failed to poll model 'both': not unique across all model repositories" in server.log)
            assert AZURE_KEY not in server.log
    finally:
        gcs.close()
        azure.close()


def test_polling_follows_a_storage(s3: S3, tmp_path: Path) -> None:
    """Changed, added and removed models are seen without a download of what is the same."""
    s3.put({"p/m/config.pbtxt": CONFIG, "p/m/1/model.py": model(2)})
    flags = ("--model-control-mode=poll", "--repository-poll-secs=1")
    with started(f"{s3.url}/p", tmp_path, *flags) as server:
        assert ask(server) == 2.0
        s3.put({"p/m/1/model.py": model(5), "p/new/config.pbtxt": CONFIG, "p/new/1/model.py": model(7)})
        until(lambda: index(server).get("new") == "READY" and ask(server) == 5.0)
        s3.remove("p/new/config.pbtxt", "p/new/1/model.py")
        until(lambda: "new" not in index(server))
    assert server.log.count("downloaded 'm'") == 2


def test_a_bad_url_ends_the_start(tmp_path: Path) -> None:
    """Before anything is loaded, with what was expected."""
    server = Server("as://account")
    assert server.wait() == 1
    with pytest.raises(ServerError):
        server.ready_seconds()
    assert "Invalid azure storage path: as://account; expected as://<account>/<container>/<path>" in server.log
    server.close()
