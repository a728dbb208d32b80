"""When a DALI model's pipeline is made anew: only where a run was left half-done. Without DALI."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from conch.backend.dali.program.model import TritonPythonModel
from conch.backend.python.pb_utils import InferenceRequest, InferenceResponse, Tensor


class Output(list[Any]):
    """Samples of any shapes."""

    def is_dense_tensor(self) -> bool:
        return False


class Pipeline:
    """Gives back what it is fed, and cannot run again after a run that failed; 13 is not to its liking."""

    def __init__(self) -> None:
        self.fed: list[Any] = []
        self.broken = False

    def feed_input(self, name: str, samples: list[Any]) -> None:
        assert not self.fed
        self.fed = samples

    def run(self) -> list[Output]:
        samples, self.fed = self.fed, []
        self.broken |= any(13 in sample for sample in samples)
        if self.broken:
            raise RuntimeError("no")
        return [Output(sample[sample > 0] for sample in samples)]


class Model(TritonPythonModel):
    def __init__(self) -> None:
        self._model, self._inputs, self._outputs, self._told = "m", ["X"], ["Y"], {"split": ()}
        self.built = 0
        self.fails = False
        self._pipeline = self._build()

    def _build(self) -> Pipeline:
        if self.fails:
            raise RuntimeError("no memory")
        self.built += 1
        return Pipeline()

    def answers(self, *asked: Sequence[Sequence[int]]) -> list[Any]:
        """What each request got of its rows, or the error's text."""
        requests = [
            InferenceRequest(
                inputs=[Tensor("X", np.array(rows, np.int32))], requested_output_names=["Y"], model_name="m"
            )
            for rows in asked
        ]
        return [_told(each) for each in self.execute(requests)]


def _told(response: InferenceResponse) -> object:
    if response.has_error():
        return response.error().message()
    return response.output_tensors()[0].as_numpy().tolist()


NO = "DALI Backend error: no"
RAGGED = "DALI Backend error: output 'Y' has samples of the shapes [(1,), (2,)] in one request"


def test_a_run_that_failed_costs_one_pipeline() -> None:
    """It is made when the next request needs it."""
    model = Model()
    assert model.answers([[13, 1]]) == [NO]
    assert model.built == 1
    assert model.answers([[1, 2]]) == [[[1, 2]]]
    assert model.built == 2


def test_an_answer_that_cannot_be_given_costs_none() -> None:
    """The pipeline has run well: only what is to be made of its outputs fails."""
    model = Model()
    (refused, other) = model.answers([[1, 0], [1, 2]], [[5, 6]])
    assert refused.startswith(RAGGED)
    assert other == [[5, 6]]
    assert model.built == 1


def test_each_request_of_a_failed_batch_has_its_own_answer() -> None:
    """The pipeline that failed runs none of them."""
    model = Model()
    assert model.answers([[1, 2]], [[13, 1]], [[3, 4]]) == [[[1, 2]], NO, [[3, 4]]]
    assert model.built == 3


def test_a_pipeline_that_cannot_be_made_again_fails_the_requests_that_need_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was answered already stays answered, and the next request tries again."""
    model = Model()
    monkeypatch.setattr(model, "fails", True)
    assert model.answers([[13, 1]]) == [NO]
    assert model.answers([[1, 2]]) == ["DALI Backend error: no memory"]
    model.fails = False
    assert model.answers([[1, 2]]) == [[[1, 2]]]
