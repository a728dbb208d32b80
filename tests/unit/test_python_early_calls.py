"""Calls of a Python model to other models where no batch makes them: around `execute`, and in threads of its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import conch
from conch.types.request import InferRequest
from conch.types.response import FINAL
from support.fake_calls import FakeModels, number
from support.python_models import array_of, make_spec, model_source, served
from support.until import until

pytestmark = pytest.mark.slow

SPEC = make_spec("FP64")
#: Ways to call `name` and get the first number of its response.
WAYS = {
    "exec": "request.exec()",
    "async_exec": "asyncio.run(awaited(request.async_exec))",
    "decoupled exec": "next(iter(request.exec(decoupled=True)))",
    "decoupled async_exec": "asyncio.run(awaited_stream(request.async_exec))",
}
CALL = """
def call(self, name):
    import asyncio

    async def awaited(execute):
        return await execute()

    async def awaited_stream(execute):
        return [each async for each in await execute(decoupled=True)][0]

    x = pb_utils.Tensor("X", np.array([[2.0]]))
    request = pb_utils.InferenceRequest(model_name=name, requested_output_names=["Y"], inputs=[x])
    response = WAY
    if response.has_error():
        return response.error().message()
    return float(response.output_tensors()[0].as_numpy().ravel()[0])

def refused(self, name):
    try:
        return str(self.call(name))
    except pb_utils.TritonModelException as error:
        return str(error)
"""
REFUSAL = "BLS is only supported during the 'execute' function."


@pytest.fixture(params=WAYS)
def call(request: pytest.FixtureRequest) -> str:
    """What a model's class has to call others in this way; MADE_UP is one of `FakeModels`."""
    made_up = "stream" if "decoupled" in request.param else "other"
    return CALL.replace("WAY", WAYS[request.param]) + f"\nMADE_UP = {made_up!r}\n"


def answered(request: InferRequest) -> None:
    """5.0, as decoupled and other models say it."""
    if request.form.decoupled:
        request.sink.reply(request, number(5.0), False)
        request.sink.reply(request, FINAL, True)
    else:
        request.sink.reply(request, number(5.0), True)


def test_calls_around_execute_are_refused(tmp_path: Path, call: str) -> None:
    """In `initialize`, in a thread that it waits for, and in `finalize`: at once, and no other model hears of them."""
    more = f"""
def initialize(self, args):
    import threading
    self.heard = [self.refused(self.MADE_UP)]
    thread = threading.Thread(target=lambda: self.heard.append(self.refused(self.MADE_UP)))
    thread.start()
    thread.join()

def finalize(self):
    self.heard.append(self.refused(self.MADE_UP))
    open({str(tmp_path / "heard")!r}, "w").write("|".join(self.heard))
"""
    models = FakeModels(answered)
    with served(tmp_path, model_source(more=call + more), SPEC, models=models) as model:
        model.ask(model.request(np.array([[1.0]])))
    assert (tmp_path / "heard").read_text().split("|") == [REFUSAL] * 3
    assert models.requests == []


def test_a_thread_may_call_as_soon_as_the_model_is_loaded(tmp_path: Path, call: str) -> None:
    """Whether it was begun by `initialize` or by `execute`, and although no batch is executed."""
    more = """
def begin(self):
    import threading

    def work():
        while (found := self.refused(self.MADE_UP)).startswith("BLS is only"):
            time.sleep(0.001)
        self.found.append(found)

    threading.Thread(target=work, daemon=True).start()

def initialize(self, args):
    self.found = []
    self.begin()
"""
    execute = """
        if not self.__dict__.setdefault("begun", []):
            self.begun.append(True)
            self.begin()
        return [answer(np.array([[len(self.found), *(each == "5.0" for each in self.found)]]) * 1.0) for _ in requests]
    """
    with served(tmp_path, model_source(execute, call + more), SPEC, models=FakeModels(answered)) as model:

        def found() -> list[float]:
            (response,) = model.ask(model.request(np.array([[1.0]])))
            numbers: list[float] = array_of(response.outputs[0]).ravel().tolist()
            return numbers

        until(lambda: found() == [2.0, 1.0, 1.0])


CALLER = """
def initialize(self, args):
    import threading
    self.notes = open(os.path.join(args["model_repository"], "notes"), "a")
    threading.Thread(target=self.work, daemon=True).start()

def work(self):
    while True:
        for name in ("caller", "other", "missing"):
            print(name, self.refused(name), file=self.notes, flush=True)
        time.sleep(0.01)
"""
OTHER = """
def initialize(self, args):
    hold = os.path.join(args["model_repository"], "hold")
    while os.path.exists(hold):
        time.sleep(0.01)
"""
CONFIG = """
backend: "python"
max_batch_size: 8
input { name: "X" data_type: TYPE_FP64 dims: -1 }
output { name: "Y" data_type: TYPE_FP64 dims: -1 }
"""
EXECUTE = "return [answer(request.inputs()[0].as_numpy()) for request in requests]"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for name in ("caller", "other"):
        (tmp_path / name / "1").mkdir(parents=True)
        (tmp_path / name / "config.pbtxt").write_text(CONFIG)
    return tmp_path


@pytest.fixture
def server(repository: Path, call: str) -> Iterator[conch.Server]:
    """`caller` calls itself, `other` and a model that is not there, all the time; `other` is not loaded."""
    (repository / "caller" / "1" / "model.py").write_text(model_source(EXECUTE, call + CALLER))
    (repository / "other" / "1" / "model.py").write_text(model_source(EXECUTE, OTHER))
    with conch.Server(repository, model_control_mode="explicit", load_model=["caller"]) as running:
        yield running


def test_calls_meet_models_that_come_and_go(server: conch.Server, repository: Path) -> None:
    """Whoever calls a model that is missing, loading or unloaded hears so, and is answered while it is served; a model
    may call itself. No call waits for ever."""
    notes, hold = repository / "caller" / "notes", repository / "other" / "hold"

    def said(name: str, text: str) -> bool:
        """Whether that is what the next call hears."""
        lines = [line for line in notes.read_text().splitlines() if line.startswith(f"{name} ")]
        return bool(lines) and text in lines[-1]

    gone = "is not ready."
    until(lambda: said("caller", "2.0"))
    until(lambda: said("missing", gone) and said("other", gone))
    hold.touch()
    loading = threading.Thread(target=server.load, args=("other",))
    loading.start()
    before = notes.read_text().count("other ")
    until(lambda: notes.read_text().count("other ") > before + 3)
    assert said("other", gone)
    hold.unlink()
    loading.join(60)
    until(lambda: said("other", "2.0"))
    server.unload("other")
    until(lambda: said("other", gone))
    assert said("caller", "2.0")
