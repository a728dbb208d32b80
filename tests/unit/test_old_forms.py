"""Forms of requests that no request has any more are let go, though the model that saw them serves on."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from conch.backend.padding import Padder
from conch.backend.python.channel import Area
from conch.backend.python.message import Messages
from conch.observe.stats import ModelStats
from conch.types.dtype import FP32
from conch.types.model import ModelSpec, TensorSpec
from conch.types.padding import PaddedInput, Padding
from conch.types.request import InferRequest, RequestForm
from support.python_models import form_for
from support.requests import Recorder

pytestmark = pytest.mark.slow

PADDING = Padding((PaddedInput("x", 0, 1, buckets=(4,)),))
SPEC = ModelSpec("m", 1, 4, (TensorSpec("x", FP32, (-1,)),), (TensorSpec("y", FP32, (-1,)),), padding=PADDING)


def request_of(form: RequestForm) -> InferRequest:
    return InferRequest(form, "", (bytes(8),), Recorder(), 0)


def form(generation: int) -> RequestForm:
    """The form of one head after so many loads, of this model or of others."""
    return form_for(SPEC, (1, 2), generation=generation)


def alive() -> int:
    gc.collect()
    return sum(type(each) is RequestForm for each in gc.get_objects())


@pytest.fixture
def messages() -> Iterator[Messages]:
    area = Area.make(4096, 4096)
    yield Messages(SPEC, area)
    area.close()


def test_of_a_worker_no_old_forms_are_remembered(messages: Messages) -> None:
    """Reloads of other models make the forms of this one anew; what is remembered of its worker does not grow by it."""
    before = alive()
    for generation in range(1, 51):
        messages.batch([request_of(form(generation))], 1, 0)
    assert alive() <= before + 1


def test_requests_of_two_generations_do_not_push_each_other_out(messages: Messages) -> None:
    """While a load swaps, requests of both are on their way, which is no reason to forget the newer."""
    messages.batch([request_of(form(1))], 1, 0)
    before = alive()
    messages.batch([request_of(form(2))], 2, 0)
    messages.batch([request_of(form(1)), request_of(form(1))], 3, 0)
    assert alive() == before + 2


def test_padding_keeps_no_old_forms() -> None:
    """The forms after padding are shared by requests of one generation, and gone with it."""
    padder = Padder(SPEC, PADDING, ModelStats())
    before = alive()
    for generation in range(1, 51):
        one, other = padder.pad([request_of(form(generation)), request_of(form(generation))])
        assert one.form is other.form
    del one, other
    assert alive() <= before + 1
