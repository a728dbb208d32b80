"""Models that sleep: a server process with more of them than fit into memory, and one that loads on demand."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from tritonclient.utils import InferenceServerException

from fault.budget import put_onnx
from support.python_models import HEAD
from support.server import Server
from support.until import until

pytestmark = pytest.mark.slow

#: Y is X and the number of executions since the model was loaded; its weights take MEGABYTES.
MODEL = (
    HEAD
    + """
    def initialize(self, args):
        self.weights = np.ones(MEGABYTES << 20, np.uint8)
        self.count = 0

    def execute(self, requests):
        self.count += len(requests)
        return [answer(r.inputs()[0].as_numpy() + self.count) for r in requests]
"""
)
CONFIG = """
backend: "python"
max_batch_size: 8
input { name: "X" data_type: TYPE_FP32 dims: -1 }
output { name: "Y" data_type: TYPE_FP32 dims: -1 }
"""
#: The server itself takes about 60 MiB, a model 81: three fit.
BUDGET = 340


def write(
    root: Path, name: str, megabytes: int = 60, more: str = "", memory: object = None, model: str = MODEL
) -> None:
    (root / name / "1").mkdir(parents=True, exist_ok=True)
    if memory is not None:
        said = json.dumps(memory).replace('"', '\\"')
        more += f'parameters {{ key: "conch_memory" value {{ string_value: "{said}" }} }}\n'
    (root / name / "config.pbtxt").write_text(CONFIG + more)
    (root / name / "1" / "model.py").write_text(model.replace("MEGABYTES", str(megabytes)))


def ask(server: Server, model: str, value: float = 0.0, **more: object) -> float:
    given = grpcclient.InferInput("X", [1, 1], "FP32")
    given.set_data_from_numpy(np.full((1, 1), value, np.float32))
    with grpcclient.InferenceServerClient(server.grpc) as client:
        return float(client.infer(model, [given], **more).as_numpy("Y")[0, 0])


def index(server: Server) -> dict[str, tuple[str, str]]:
    with httpclient.InferenceServerClient(server.http) as client:
        entries = client.get_model_repository_index()
    return {each["name"]: (each.get("state", ""), each.get("reason", "")) for each in entries}


def asleep(server: Server) -> set[str]:
    return {name for name, (_, reason) in index(server).items() if reason.startswith("asleep")}


def load(server: Server, *names: str) -> None:
    with httpclient.InferenceServerClient(server.http, network_timeout=60.0) as client:
        for name in names:
            client.load_model(name)


def unload(server: Server, *names: str) -> None:
    with httpclient.InferenceServerClient(server.http) as client:
        for name in names:
            client.unload_model(name)


def metric(server: Server, name: str, model: str) -> float:
    with urllib.request.urlopen(f"http://{server.metrics}/metrics") as answer:
        page = answer.read().decode()
    found = re.search(rf'^{name}{{[^}}]*model="{model}"[^}}]*}} (\S+)$', page, re.MULTILINE)
    assert found, page
    return float(found[1])


def workers(server: Server) -> int:
    return len(psutil.Process(server.process.pid).children())


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("budget")
    for name in ("a", "b", "c", "d"):
        write(root, name)
    write(root, "pinned", memory={"pinned": True})
    write(root, "estimated", memory={"ram": "500MiB"})
    write(root, "large", megabytes=BUDGET)
    return root


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[Server]:
    models = [f"--load-model={name}" for name in "abcd"]
    flags = (f"--memory-budget={BUDGET}MiB", "--model-control-mode=explicit", *models)
    with Server(repository, *flags) as running:
        yield running


def use(server: Server, *names: str) -> None:
    """In this order; the last three are awake then."""
    for name in names:
        ask(server, name)


def test_the_one_used_the_longest_time_ago_sleeps_and_wakes(server: Server) -> None:
    """It stays READY and says that it sleeps; a request wakes it, and another one makes room; counters go on."""
    use(server, "a", "b", "c", "d")
    assert asleep(server) == {"a"}
    assert index(server)["a"] == ("READY", "asleep: loads on demand")
    with httpclient.InferenceServerClient(server.http) as client:
        before = client.get_inference_statistics("a")["model_stats"][0]["inference_count"]
    loads = metric(server, "conch_model_cold_loads_total", "a")
    use(server, "b", "c", "a")
    assert asleep(server) == {"d"}
    with httpclient.InferenceServerClient(server.http) as client:
        (stats,) = client.get_inference_statistics("a")["model_stats"]
    assert stats["inference_count"] == before + 1
    (usage,) = stats["memory_usage"]
    assert usage["type"] == "CPU"
    assert 60 << 20 < usage["byte_size"] < 120 << 20
    assert metric(server, "conch_model_cold_loads_total", "a") == loads + 1
    assert metric(server, "conch_model_memory_bytes", "d") > 60 << 20


def test_one_load_for_all_who_wait(server: Server) -> None:
    """Requests that come at the same time wake a model once, and all are answered."""
    use(server, "b", "c", "d")
    before = metric(server, "conch_model_cold_loads_total", "a")
    with ThreadPoolExecutor(12) as pool:
        answers = sorted(pool.map(lambda _: ask(server, "a"), range(12)))
    assert len(answers) == 12
    assert metric(server, "conch_model_cold_loads_total", "a") == before + 1


def test_a_reload_of_a_sleeping_model_leaves_it_asleep(server: Server, repository: Path) -> None:
    """The new version is loaded, which shows that it can be, and sleeps; it is what wakes."""
    use(server, "b", "c", "d")
    assert asleep(server) == {"a"}
    write(repository, "a", model=MODEL.replace("self.count = 0", "self.count = 1000"))
    load(server, "a")
    until(lambda: "a" in asleep(server))
    assert ask(server, "a") == 1001.0


def test_pinned_models_stay(server: Server) -> None:
    """Others take turns around them."""
    load(server, "pinned")
    use(server, "a", "b", "c")
    assert asleep(server) == {"a", "d"}
    unload(server, "pinned")


def test_a_model_that_never_fits_is_refused_with_numbers(server: Server) -> None:
    """Before it is loaded where its config says what it takes, else after it was measured; others are not harmed."""
    load(server, "pinned")
    numbers = (
        rf"needs 500 MiB; the budget is {BUDGET} MiB of which \d+ MiB are pinned \(pinned\) and "
        r"\d+ MiB the server's own"
    )
    with pytest.raises(InferenceServerException, match=numbers):
        load(server, "estimated")
    with pytest.raises(InferenceServerException, match=rf"needs 3\d\d MiB; the budget is {BUDGET} MiB of which"):
        load(server, "large")
    assert ask(server, "pinned") == 1.0
    assert ask(server, "b") > 0
    unload(server, "pinned")


def test_sleep_gives_the_memory_back(server: Server) -> None:
    """A model that sleeps has no worker process, and one that is unloaded is gone, asleep or not."""
    use(server, "a", "b", "c", "d")
    until(lambda: workers(server) == 3)
    unload(server, "a", "b", "c", "d")
    until(lambda: workers(server) == 0)
    assert {state for name, (state, _) in index(server).items() if name in "abcd"} <= {"UNAVAILABLE", "UNLOADING"}


# ---- without a budget

ENSEMBLE = """
platform: "ensemble"
max_batch_size: 8
input { name: "X" data_type: TYPE_FP32 dims: -1 }
output { name: "Y" data_type: TYPE_FP32 dims: -1 }
ensemble_scheduling {
  step { model_name: "lazy" model_version: -1
         input_map { key: "X" value: "X" } output_map { key: "Y" value: "between" } }
  step { model_name: "lazy2" model_version: -1
         input_map { key: "X" value: "between" } output_map { key: "Y" value: "Y" } }
}
"""
CALLER = (
    HEAD
    + """
    def execute(self, requests):
        asked = pb_utils.InferenceRequest(model_name="lazy", requested_output_names=["Y"], inputs=requests[0].inputs())
        response = asked.exec()
        return [answer(response.output_tensors()[0].as_numpy() + 100)]
"""
)
CONTROL = """
sequence_batching { max_sequence_idle_microseconds: 60000000 }
"""
BROKEN = MODEL.replace("self.count = 0", "raise ValueError('no weights')")


@pytest.fixture(scope="module")
def lazy_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("lazy")
    quick = {"idle_seconds": 0.3, "load": "on_demand"}
    for name in ("lazy", "lazy2", "watched"):
        write(root, name, 1, memory=quick)
    write(root, "caller", 1, model=CALLER)
    write(root, "sequence", 1, CONTROL, quick)
    write(root, "cached", 1, "response_cache { enable: true }\n", quick)
    write(root, "broken", 1, memory={"load": "on_demand"}, model=BROKEN)
    write(root, "weights", memory=quick)
    (root / "weights" / "1" / "model.py").unlink()
    (root / "weights" / "config.pbtxt").write_text(
        (root / "weights" / "config.pbtxt").read_text().replace("python", "onnxruntime").replace("dims: -1", "dims: 4")
    )
    put_onnx(root / "weights" / "1" / "model.onnx", 3)
    (root / "ensemble" / "1").mkdir(parents=True)
    (root / "ensemble" / "config.pbtxt").write_text(ENSEMBLE)
    return root


@pytest.fixture(scope="module")
def lazy(lazy_repository: Path) -> Iterator[Server]:
    with Server(lazy_repository, "--cache-config=local,size=1000000") as running:
        yield running


def test_models_load_on_demand_and_sleep_when_idle(lazy: Server) -> None:
    """Nothing is loaded before it is asked for, and it goes when nobody has asked for a while."""
    assert metric(lazy, "conch_model_cold_loads_total", "watched") == 0
    assert "watched" in asleep(lazy)
    assert ask(lazy, "watched") == 1.0
    assert metric(lazy, "conch_model_cold_loads_total", "watched") == 1
    # Asked again and again, as it may sleep before it is looked at.
    until(lambda: ask(lazy, "watched") > 0 and "watched" not in asleep(lazy))
    until(lambda: "watched" in asleep(lazy))
    loads = metric(lazy, "conch_model_cold_loads_total", "watched")
    assert ask(lazy, "watched") == 1.0
    assert metric(lazy, "conch_model_cold_loads_total", "watched") == loads + 1


def test_models_in_the_server_s_process_give_their_memory_back(lazy: Server) -> None:
    """The weights of an ONNX model are gone from the server soon after it was put to sleep."""
    process = psutil.Process(lazy.process.pid)
    given = grpcclient.InferInput("X", [1, 4], "FP32")
    given.set_data_from_numpy(np.zeros((1, 4), np.float32))
    with grpcclient.InferenceServerClient(lazy.grpc) as client:
        # What the runtime itself takes stays.
        client.infer("weights", [given])
        until(lambda: "weights" in asleep(lazy))
        before = process.memory_info().rss

        def grows() -> bool:
            assert client.infer("weights", [given]).as_numpy("Y")[0, 0] == 3.0
            return process.memory_info().rss - before > 50 << 20

        # Asked again and again, as it may sleep before it is looked at.
        until(grows)
    until(lambda: "weights" in asleep(lazy))
    until(lambda: process.memory_info().rss - before < 10 << 20)
    assert metric(lazy, "conch_model_memory_bytes", "weights") >= 60 << 20


def test_sleeping_models_have_their_metadata(lazy: Server) -> None:
    """What clients ask of a model does not wake it."""
    with grpcclient.InferenceServerClient(lazy.grpc) as client:
        assert client.is_model_ready("lazy2")
        assert client.get_model_metadata("lazy2").inputs[0].name == "X"
        assert client.get_model_config("lazy2").config.instance_group[0].count == 1
    assert "lazy2" in asleep(lazy)


def test_ensembles_and_models_that_call_wake_what_they_need(lazy: Server) -> None:
    """One step after the other; and a model that executes while the one it calls is loaded."""
    assert ask(lazy, "ensemble") == 2.0
    until(lambda: {"lazy", "lazy2"} <= asleep(lazy))
    assert ask(lazy, "caller") == 101.0


def test_a_model_with_a_sequence_stays_awake(lazy: Server) -> None:
    """Its state would be lost; it sleeps when the sequence has ended."""
    assert ask(lazy, "sequence", sequence_id=5, sequence_start=True) == 1.0
    # Longer than it would stay idle.
    ask(lazy, "watched")
    until(lambda: "watched" in asleep(lazy))
    until(lambda: "watched" in asleep(lazy))
    assert "sequence" not in asleep(lazy)
    assert ask(lazy, "sequence", sequence_id=5) == 2.0
    assert ask(lazy, "sequence", sequence_id=5, sequence_end=True) == 3.0
    until(lambda: "sequence" in asleep(lazy))


def test_the_cache_answers_for_a_sleeping_model(lazy: Server) -> None:
    """Without waking it."""
    assert ask(lazy, "cached", 5.0) == 6.0
    until(lambda: "cached" in asleep(lazy))
    assert ask(lazy, "cached", 5.0) == 6.0
    assert metric(lazy, "conch_model_cold_loads_total", "cached") == 1


def test_a_model_that_cannot_be_woken_says_why(lazy: Server, lazy_repository: Path) -> None:
    """Requests get 503 and the model's own words, the index shows them, and a repaired model serves soon."""
    with pytest.raises(InferenceServerException, match=r"could not be loaded on demand: .*no weights") as caught:
        ask(lazy, "broken")
    assert caught.value.status() == "StatusCode.UNAVAILABLE"
    until(lambda: "no weights" in index(lazy)["broken"][1])
    (lazy_repository / "broken" / "1" / "model.py").write_text(MODEL.replace("MEGABYTES", "1"))

    def serves() -> bool:
        try:
            return ask(lazy, "broken") == 1.0
        except InferenceServerException:
            return False

    until(serves)
    assert index(lazy)["broken"] == ("READY", "")
