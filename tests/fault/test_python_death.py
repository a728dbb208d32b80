"""Workers that die, hang or leave things behind: no request waits for ever, nothing leaks."""

from __future__ import annotations

import errno
import gc
import os
import select
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from conch.backend.python import restarts
from conch.backend.python.channel import OUTPUTS, WINDOW
from conch.backend.python.process import Launch, WorkerProcess
from conch.backend.python.settings import read_settings
from conch.types.error import Code, InferError
from conch.types.flow import Flow
from conch.types.response import InferResponse
from support.python_models import array_of, form_for, make_spec, model_source, outcome, served
from support.requests import Recorder
from support.until import ended, until


@pytest.mark.parametrize(
    ("execute", "text"),
    [
        (
            "print('last words', file=sys.stderr)\nos._exit(3)",
            "exited with code 3. Last lines of its stderr:\nlast words",
        ),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "was ended by SIGSEGV."),
        ("os.kill(os.getpid(), signal.SIGKILL)", "was ended by SIGKILL (out of memory is the usual reason)."),
        pytest.param("os.closerange(3, 100)\ntime.sleep(60)", "was ended by SIGKILL", marks=pytest.mark.slow),
    ],
)
def test_a_worker_that_dies_fails_its_batch_and_comes_back(tmp_path: Path, execute: str, text: str) -> None:
    """The requests it had get INTERNAL with the reason; the next ones are answered by a new worker."""
    source = model_source(
        "if requests[0].inputs()[0].as_numpy()[0, 0] == 13:\n"
        + textwrap.indent(execute, "    ")
        + "\nreturn [answer(r.inputs()[0].as_numpy()) for r in requests]"
    )
    with served(tmp_path, source) as model:
        for _ in range(2):
            first = model.pid
            form = form_for(model.spec, (1, 2))
            batch = [model.request(np.full((1, 2), 13, np.float32), form=form) for _ in range(2)]
            for error in model.ask(*batch):
                assert error.code is Code.INTERNAL
                assert error.message.startswith(
                    f"Stub process 'm_0_0' is not healthy. The worker process of model 'm' {text}"
                )
            assert array_of(model.echo(5).outputs[0]).tolist() == [[5, 5]]
            assert model.pid != first
            assert model.model.ready()
        assert model.stats.fail.count == 4


def test_a_worker_killed_while_idle_is_replaced(tmp_path: Path) -> None:
    """A batch that comes while there is no worker waits for the new one."""
    more = """
    def initialize(self, args):
        while os.path.exists(os.path.join(pb_utils.get_model_dir(), "hold")):
            time.sleep(0.01)
    """
    with served(tmp_path, model_source(more=more)) as model:
        model.echo()
        hold = tmp_path / "m" / "1" / "hold"
        hold.touch()
        os.kill(model.pid, signal.SIGKILL)
        until(lambda: model.instance._worker is None)
        assert not model.model.ready()
        request = model.request(np.ones((1, 2), np.float32))
        idle = model.start([request])
        assert not idle.wait(0.05)
        hold.unlink()
        assert idle.wait(60)
        assert isinstance(outcome(request), InferResponse)


STREAMING = """
    def work(sender):
        for number in range(COUNT):
            sender.send(answer(np.full((1, 3 if number % 10 else 20_000), number, np.float32)))
            time.sleep(PAUSE)
        sender.send(flags=1)
    for request in requests:
        threading.Thread(target=work, args=(request.get_response_sender(),), daemon=True).start()
"""


def test_a_worker_killed_with_open_responders_ends_each_request_once(tmp_path: Path) -> None:
    """What had arrived counts, then comes one error; the next worker serves new requests, nothing stays open."""
    # None of them ends by itself, however late the others are begun.
    source = model_source(STREAMING.replace("COUNT", "1_000_000").replace("PAUSE", "0.001"))
    with served(tmp_path, source, make_spec(decoupled=True)) as model:
        for wanted in (0, 1, 25):
            requests = [model.request(np.ones((1, 2), np.float32)) for _ in range(3)]
            sinks = [request.sink for request in requests]
            for request in requests:
                assert model.start([request]).wait(60)
            until(lambda: all(len(sink.replies) >= wanted for sink in sinks))  # type: ignore[attr-defined]  # noqa: B023
            assert model.instance.open() == 3
            os.kill(model.pid, signal.SIGKILL)
            for sink in sinks:
                assert isinstance(sink, Recorder)
                sink.wait(1)
                numbers = [array_of(response.outputs[0])[0, 0] for _, response, _ in sink.replies]
                assert numbers == list(range(len(numbers)))
                assert [error.code for _, error in sink.errors] == [Code.INTERNAL]
                assert "was ended by SIGKILL" in sink.errors[0][1].message
            assert model.instance.open() == 0
            until(lambda: model.instance._worker is not None)
        assert (model.stats.success.count, model.stats.fail.count) == (0, 9)
        for sink in sinks:
            assert isinstance(sink, Recorder)
            assert len(sink.finals()) == 1


def test_a_worker_killed_while_a_sender_waits_for_its_client(tmp_path: Path) -> None:
    """Responses that were held back for a slow client are no reason to wait for ever."""
    execute = """
        sender = requests[0].get_response_sender()
        while True:
            sender.send(answer(np.zeros((1, 250_000), np.float32)))
    """
    with served(tmp_path, model_source(execute), make_spec(decoupled=True)) as model:
        request = model.request(np.ones((1, 2), np.float32))
        request.flow = Flow()
        request.flow.full = True
        idle = model.start([request])
        sink = request.sink
        assert isinstance(sink, Recorder)
        until(lambda: len(sink.replies) >= WINDOW // 1_000_000)
        os.kill(model.pid, signal.SIGKILL)
        assert idle.wait(60)
        assert len(sink.finals()) == len(sink.errors) == 1
        model.loop.call_soon_threadsafe(request.flow.release)
        until(lambda: model.instance._worker is not None)


def test_clients_that_leave_do_not_stop_a_model_that_does_not_look(tmp_path: Path) -> None:
    """A model that never asks `is_cancelled` answers to the end, and every request is settled once."""
    source = model_source(STREAMING.replace("COUNT", "50").replace("PAUSE", "0"))
    with served(tmp_path, source, make_spec(decoupled=True)) as model:
        requests = [model.request(np.ones((1, 2), np.float32)) for _ in range(4)]
        assert model.start(requests).wait(60)
        for request in requests:
            request.cancelled = True
        for request in requests:
            assert isinstance(request.sink, Recorder)
            request.sink.wait(1)
            assert len(request.sink.finals()) == 1
        until(lambda: model.instance.open() == 0)


@pytest.mark.slow
def test_every_nth_message_may_be_the_last(tmp_path: Path) -> None:
    """Wherever a worker is killed, each request has exactly one answer."""
    with served(
        tmp_path, model_source("time.sleep(0.002)\n" + "return [answer(r.inputs()[0].as_numpy()) for r in requests]")
    ) as model:
        form = form_for(model.spec, (1, 20_000))
        for delay in (0.0, 0.001, 0.003, 0.005):
            batch = [model.request(np.ones((1, 20_000), np.float32), form=form) for _ in range(3)]
            pid = model.pid
            idle = model.start(batch)
            time.sleep(delay)
            os.kill(pid, signal.SIGKILL)
            assert idle.wait(60)
            for request in batch:
                outcome(request)
            until(lambda: model.instance._worker is not None)


@pytest.mark.slow
def test_restarts_that_keep_failing_refuse_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After three failed restarts requests get the reason at once; when the model is well again they are answered."""
    monkeypatch.setattr("conch.backend.python.supervise.FIRST", 0.01)
    monkeypatch.setattr("conch.backend.python.supervise.LONGEST", 0.05)
    more = """
    def initialize(self, args):
        if os.path.exists(os.path.join(pb_utils.get_model_dir(), "broken")):
            raise ValueError("no weights")
    """
    with served(tmp_path, model_source(more=more)) as model:
        flag = tmp_path / "m" / "1" / "broken"
        flag.write_text("")
        os.kill(model.pid, signal.SIGKILL)
        until(lambda: model.instance._worker is None)
        for _ in range(3):
            error = model.echo()
            assert error.message.startswith(
                "Stub process 'm_0_0' is not healthy. Its worker process cannot be restarted: ValueError: no weights"
            )
        assert not model.model.ready()
        flag.unlink()
        until(model.model.ready)
        assert isinstance(model.echo(), InferResponse)


def test_restarts_survive_a_machine_without_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a restart fails with, it is tried again; what was made until then is freed, and the process ended."""
    with served(tmp_path, model_source()) as model:
        model.echo()
        before = descriptors()
        real, failed = os.pidfd_open, []

        def scarce(pid: int, flags: int = 0) -> int:
            if len(failed) < 2:
                failed.append(pid)
                raise OSError(errno.EMFILE, "Too many open files")
            return real(pid, flags)

        monkeypatch.setattr(os, "pidfd_open", scarce)
        os.kill(model.pid, signal.SIGKILL)
        until(lambda: len(failed) == 2)
        assert array_of(model.echo(5).outputs[0]).tolist() == [[5, 5]]
        assert descriptors() == before
        assert not any(psutil.pid_exists(pid) for pid in failed)


def test_restarts_survive_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that nobody thought of does not end the restarts either."""
    with served(tmp_path, model_source()) as model:
        model.echo()
        real, failed = restarts.Started, []

        def odd(*arguments: Any) -> Any:
            if not failed:
                failed.append(1)
                raise MemoryError
            return real(*arguments)

        monkeypatch.setattr(restarts, "Started", odd)
        os.kill(model.pid, signal.SIGKILL)
        until(lambda: bool(failed))
        assert array_of(model.echo(5).outputs[0]).tolist() == [[5, 5]]


def test_an_interpreter_that_cannot_begin(tmp_path: Path) -> None:
    """It is gone before it is spoken to: what it said is told, and nothing is left open."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho no libpython >&2\nexit 127\n")
    python.chmod(0o755)
    before = descriptors()
    worker = WorkerProcess(Launch("m", "m_0", str(python), {}, read_settings({})))
    select.select([worker.pidfd], [], [])
    with pytest.raises(InferError) as caught:
        worker.begin(lambda: False)
    assert caught.value.message.endswith("exited with code 127. Last lines of its stderr:\nno libpython")
    assert descriptors() == before


def descriptors() -> int:
    gc.collect()
    return psutil.Process().num_fds()


def test_close_while_the_model_is_broken(tmp_path: Path) -> None:
    """close() ends the restarts and fails the batch that waits."""
    more = """
    def initialize(self, args):
        if os.path.exists(os.path.join(pb_utils.get_model_dir(), "broken")):
            time.sleep(60)
    """
    with served(tmp_path, model_source(more=more)) as model:
        (tmp_path / "m" / "1" / "broken").write_text("")
        os.kill(model.pid, signal.SIGKILL)
        until(lambda: model.instance._worker is None)
        request = model.request(np.ones((1, 2), np.float32))
        idle = model.start([request])
        model.instance.close()
        assert idle.wait(60)
        assert outcome(request).code is Code.UNAVAILABLE


def test_close_while_a_batch_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that does not come to an end is ended; its batch fails."""
    monkeypatch.setattr("conch.backend.python.host.FINALIZE", 0.2)
    with served(tmp_path, model_source("time.sleep(60)")) as model:
        request = model.request(np.ones((1, 2), np.float32))
        idle = model.start([request])
        until(lambda: model.instance._batch is not None)
        model.instance.close()
        assert idle.wait(60)
        assert outcome(request).code is Code.UNAVAILABLE


@pytest.mark.slow
def test_tensors_beyond_64_mib(tmp_path: Path) -> None:
    """Memory for inputs and for outputs grows as needed, each on its own."""
    execute = """
        n = int(requests[0].inputs()[0].as_numpy()[0, 0])
        return [answer(np.full((1, n), r.inputs()[0].as_numpy()[0, -1], np.float32)) for r in requests]
    """
    with served(tmp_path, model_source(execute), settings={"shm-growth-byte-size": "4096"}) as model:
        for into, out in ((4, 20_000_000), (20_000_000, 4), (4, 4)):
            array = np.full((1, into), 7, np.float32)
            array[0, 0] = out
            (response,) = model.ask(model.request(array))
            assert response.outputs[0].shape == (1, out)
            assert array_of(response.outputs[0])[0, -1] == (7 if into > 1 else out)


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    """After loading, crashing and closing there are as many descriptors and child processes as before."""
    execute = """
        value = requests[0].inputs()[0].as_numpy()
        if value[0, 0] == 13:
            os._exit(1)
        self.__dict__.setdefault("kept", []).append(value)
        import subprocess
        subprocess.Popen(["sleep", "60"])
        return [answer(value)]
    """

    def count() -> tuple[int, int]:
        # What other tests have left for the collector holds descriptors.
        gc.collect()
        return psutil.Process().num_fds(), len(psutil.Process().children(recursive=True))

    before = count()
    with served(tmp_path, model_source(execute)) as model:
        for size in (2, *[50_000] * 20):
            model.ask(model.request(np.ones((1, size), np.float32)))
        steady = count()[0]
        for size in [50_000] * 60:
            model.ask(model.request(np.ones((1, size), np.float32)))
        # Answers that are let go of late have another area used, of which there are few.
        assert count()[0] <= steady + OUTPUTS
        model.echo(13)
        until(lambda: model.instance._worker is not None)
        model.echo()
        mine: list[psutil.Process] = []

        def found() -> bool:
            # A child that was just started may not be what it is to become.
            sleeping = [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", "60"]]
            with suppress(ProcessLookupError):
                mine[:] = [p for p in sleeping if os.getsid(p.pid) == model.pid]
            return bool(mine)

        until(found)
    assert all(now <= then for now, then in zip(count(), before, strict=True))
    until(lambda: all(map(ended, mine)))


def test_workers_end_with_the_server(tmp_path: Path) -> None:
    """A worker that never looks up from its work is ended by the kernel when the server is killed."""
    script = f"""
import sys
sys.path[:0] = {[str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "src")]!r}
from pathlib import Path
import numpy as np
from support.python_models import served, model_source
with served(Path({str(tmp_path)!r}), model_source("while True: pass")) as model:
    model.start([model.request(np.ones((1, 2), np.float32))])
    print(model.pid, flush=True)
    import time
    time.sleep(60)
"""
    server = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    with server:
        worker = psutil.Process(int(server.stdout.readline()))
        server.kill()
    until(lambda: ended(worker))
