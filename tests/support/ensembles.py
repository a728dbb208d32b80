"""Ensembles whose models answer when they are told to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from conch.config.ensemble_members import check_members
from conch.observe.stats import ModelStats
from conch.pb.model_config_pb2 import ModelConfig
from conch.schedule.api import Version
from conch.schedule.ensemble import EnsembleScheduler
from conch.schedule.ensemble_forms import Cast
from conch.schedule.ensemble_graph import graph_of
from conch.types.dtype import BYTES
from conch.types.model import ModelSpec, TensorSpec
from conch.types.request import InferRequest, RequestForm, RequestHead
from conch.types.response import InferResponse
from conch.types.tensor import Tensor
from support.requests import Recorder, make_form
from support.schedulers import HoldingScheduler

#: A step: its model, the tensors it reads by input name, and those it writes by output name.
Step = tuple[str, Mapping[str, str], Mapping[str, str]]


class FakeMember:
    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        inputs = tuple([TensorSpec(each.name, BYTES, tuple(each.dims), each.optional) for each in config.input])
        outputs = tuple([TensorSpec(each.name, BYTES, tuple(each.dims)) for each in config.output])
        self.spec = ModelSpec(config.name, 1, config.max_batch_size, inputs, outputs)
        self.stats = ModelStats()
        self.scheduler = HoldingScheduler()

    def ready(self) -> bool:
        return True


def member(name: str, inputs: Sequence[str], outputs: Sequence[str], *, decoupled: bool = False) -> FakeMember:
    """A model of BYTES tensors of one element."""
    config = ModelConfig(name=name)
    config.model_transaction_policy.decoupled = decoupled
    for names, into in ((inputs, config.input), (outputs, config.output)):
        for each in sorted(names):
            into.add(name=each, data_type=BYTES.number, dims=[1])
    return FakeMember(config)


def prepare(model: Version, head: RequestHead) -> RequestForm:
    """A form as the data plane makes it, without its checks."""
    places = {given.name: place for place, given in enumerate(head.inputs)}
    positions = tuple([n for n, tensor in enumerate(model.spec.inputs) if tensor.name in places])
    order = tuple([places[model.spec.inputs[position].name] for position in positions])
    shapes = tuple([head.inputs[place].shape for place in order])
    return make_form(
        submit=model.scheduler.submit,
        withdraw=model.scheduler.withdraw,
        head=head,
        model=model,
        inputs=positions,
        order=order,
        shapes=shapes,
        backend_shapes=shapes,
        outputs=tuple(head.outputs),
        parameters=dict(head.parameters) or None,
    )


class Stage:
    """An ensemble `e` of these steps over fakes: `ask` sends a request, its sink is a `Recorder`."""

    def __init__(
        self,
        inputs: Sequence[str],
        outputs: Sequence[str],
        steps: Sequence[Step],
        members: Sequence[FakeMember],
        *,
        limit: int = 0,
    ) -> None:
        config = ModelConfig(name="e", platform="ensemble")
        for names, into in ((inputs, config.input), (outputs, config.output)):
            for each in names:
                into.add(name=each, data_type=BYTES.number, dims=[1])
        for model, reads, writes in steps:
            step = config.ensemble_scheduling.step.add(model_name=model, model_version=-1)
            step.input_map.update(reads)
            step.output_map.update(writes)
        self.members = members
        stages = check_members(config, [each.config for each in members])
        spec = ModelSpec(
            "e",
            1,
            0,
            tuple([TensorSpec(each, BYTES, (1,), optional=True) for each in inputs]),
            tuple([TensorSpec(each, BYTES, (1,)) for each in outputs]),
        )
        self.stats = ModelStats()
        self.scheduler = EnsembleScheduler(
            Cast(graph_of(config, stages), members, spec, prepare), self.stats, lambda call: call(), limit
        )
        self.spec = spec

    def form(self, given: Sequence[str], outputs: Sequence[str] | None = None, **changes: Any) -> RequestForm:
        positions = tuple([n for n, tensor in enumerate(self.spec.inputs) if tensor.name in given])
        shapes = ((1,),) * len(positions)
        values: dict[str, Any] = {
            "head": RequestHead("e"),
            "submit": self.scheduler.submit,
            "withdraw": self.scheduler.withdraw,
            "inputs": positions,
            "order": positions,
            "shapes": shapes,
            "backend_shapes": shapes,
            "sizes": (-1,) * len(positions),
            "outputs": None if outputs is None else tuple(outputs),
        }
        return make_form(**(values | changes))

    def ask(self, form: RequestForm | None = None, id: str = "") -> InferRequest:
        """Each input's value is its name."""
        form = form or self.form([tensor.name for tensor in self.spec.inputs])
        data = tuple([self.spec.inputs[position].name.encode() for position in form.inputs])
        request = InferRequest(form, id, data, Recorder(), 0)
        self.scheduler.submit(request)
        return request

    def waiting(self) -> list[tuple[FakeMember, InferRequest]]:
        """The steps' requests that were not answered."""
        return [(each, request) for each in dict.fromkeys(self.members) for request in each.scheduler.requests]


def given(request: InferRequest) -> dict[str, bytes]:
    """The inputs of a step's request, by name."""
    specs = request.form.model.spec.inputs
    return {specs[n].name: bytes(data) for n, data in zip(request.form.inputs, request.data, strict=True)}


def answer(request: InferRequest, *, final: bool = True, leave_out: Sequence[str] = (), **values: bytes) -> None:
    """Answer a step's request with these outputs; the others have the value of `written`."""
    member = request.form.model
    if final:
        member.scheduler.requests.remove(request)
    outputs = [
        Tensor(each.name, BYTES, (1,), values.get(each.name, written(request, each.name)))
        for each in member.spec.outputs
        if each.name not in leave_out
    ]
    request.sink.reply(request, InferResponse(outputs), final)


def written(request: InferRequest, output: str, turn: str = "") -> bytes:
    """What a model writes by default: its name, turn and output, and what it was given."""
    inputs = ",".join([f"{name}={value.decode()}" for name, value in sorted(given(request).items())])
    return f"{request.form.model.spec.name}{turn}.{output}({inputs})".encode()


def replies(request: InferRequest) -> list[dict[str, bytes]]:
    """The answers that a request has had, but for the empty final one."""
    sink = request.sink
    assert isinstance(sink, Recorder)
    return [
        {tensor.name: bytes(tensor.data) for tensor in response.outputs}
        for _, response, _ in sink.replies
        if response.outputs
    ]
