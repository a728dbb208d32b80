"""The data flow of ensembles: which steps a request needs, and which of them can run now. Pure decisions.

Tensors and steps have numbers. Tensors that exist once in a request lie in one *frame*; every response of a decoupled
step opens a frame of its own for the tensors that follow from it. So what belongs together meets by itself, in
whatever order the answers come, and a frame with all outputs is one answer of the ensemble.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from conch.pb.model_config_pb2 import ModelConfig
from conch.types.model import identity

#: A tensor's value: opaque to the data flow, anything but None.
Value = Any


@dataclass(frozen=True, slots=True)
class Step:
    """One step of an ensemble. `version` is -1 for the highest."""

    number: int
    model: str
    version: int
    #: The model's input names, sorted, and the numbers of the tensors that they read.
    inputs: tuple[tuple[str, int], ...]
    #: The model's output names and the numbers of the tensors that they write.
    outputs: Mapping[str, int]
    #: The tensors that are read, each once.
    reads: tuple[int, ...]
    #: The stage of the tensors that are written, where it is another than that of those that are read; else 0.
    opens: int


@dataclass(frozen=True, slots=True)
class Graph:
    """An ensemble's steps. `stages` are as `config.ensemble_members.check_members` gives them."""

    name: str
    tensors: tuple[str, ...]
    #: The ensemble's inputs and outputs, in the order of its config, as tensors.
    inputs: tuple[int, ...]
    outputs: Mapping[str, int]
    steps: tuple[Step, ...]
    stages: tuple[int, ...]

    @property
    def decoupled(self) -> bool:
        return any(self.stages)


def graph_of(config: ModelConfig, stages: Mapping[str, int]) -> Graph:
    """From a config that has passed the rules."""
    numbers: dict[str, int] = {}

    def number(name: str) -> int:
        return numbers.setdefault(name, len(numbers))

    inputs = tuple([number(tensor.name) for tensor in config.input])
    outputs = {tensor.name: number(tensor.name) for tensor in config.output}
    steps = []
    for index, step in enumerate(config.ensemble_scheduling.step):
        read = tuple([(name, number(tensor)) for name, tensor in sorted(step.input_map.items())])
        written = {name: number(tensor) for name, tensor in sorted(step.output_map.items())}
        before = stages[next(iter(step.input_map.values()))]
        after = stages[next(iter(step.output_map.values()))]
        reads = tuple(dict.fromkeys([tensor for _, tensor in read]))
        opens = after if after != before else 0
        steps.append(
            Step(
                index, identity(step.model_namespace, step.model_name), step.model_version, read, written, reads, opens
            )
        )
    return Graph(config.name, tuple(numbers), inputs, outputs, tuple(steps), tuple([stages[name] for name in numbers]))


@dataclass(frozen=True, slots=True)
class Course:
    """The part of a graph that gives certain outputs: steps that none of them needs are left out."""

    #: For each tensor, the steps that read it.
    readers: tuple[tuple[int, ...], ...]
    #: For each tensor, how often it is taken: by its readers, and once by the answer if that shows it.
    uses: tuple[int, ...]
    #: For each step, how many tensors it waits for.
    waits: tuple[int, ...]
    #: For each step, the stage of the frames that its responses open; 0 if they belong to the frame they came from.
    opens: tuple[int, ...]
    #: The outputs: name and tensor, in the order of the answer.
    wanted: tuple[tuple[str, int], ...]
    #: The stage that the outputs are of.
    stage: int


def course(graph: Graph, wanted: Sequence[str] | None = None) -> Course:
    """`wanted`: names of outputs; None for all."""
    names = tuple(graph.outputs) if wanted is None else tuple(wanted)
    targets = [graph.outputs[name] for name in names]
    writers = {tensor: step for step in graph.steps for tensor in step.outputs.values()}
    needed: set[int] = set()
    waiting = list(targets)
    while waiting:
        step = writers.get(waiting.pop())
        if step is not None and step.number not in needed:
            needed.add(step.number)
            waiting += step.reads
    readers: list[list[int]] = [[] for _ in graph.tensors]
    for step in graph.steps:
        if step.number in needed:
            for tensor in step.reads:
                readers[tensor].append(step.number)
    return Course(
        tuple([tuple(each) for each in readers]),
        tuple([len(each) + (number in targets) for number, each in enumerate(readers)]),
        tuple([len(step.reads) for step in graph.steps]),
        tuple([step.opens for step in graph.steps]),
        tuple(zip(names, targets, strict=True)),
        graph.stages[targets[0]] if targets else 0,
    )


class Frame:
    """The tensors of one turn; `values` of those that are not there, or were taken by all who read them, are None."""

    __slots__ = ("_course", "_left", "_uses", "_waits", "number", "values")

    def __init__(self, course: Course, number: int) -> None:
        self.number = number
        self.values: list[Value] = [None] * len(course.uses)
        self._course = course
        self._uses = list(course.uses)
        self._waits = list(course.waits)
        self._left = len(course.wanted)

    def put(self, values: Iterable[tuple[int, Value]]) -> list[int]:
        """These tensors are there now; returns the steps that can run because of that."""
        ready = []
        uses, readers, waits = self._course.uses, self._course.readers, self._waits
        for tensor, value in values:
            if not uses[tensor]:
                continue
            self.values[tensor] = value
            if uses[tensor] != len(readers[tensor]):
                self._left -= 1
            for step in readers[tensor]:
                waits[step] -= 1
                if not waits[step]:
                    ready.append(step)
        return ready

    def take(self, tensor: int) -> Value:
        """The value, for one who needs it; it is forgotten when all have taken it."""
        value = self.values[tensor]
        self._uses[tensor] -= 1
        if not self._uses[tensor]:
            self.values[tensor] = None
        return value

    def complete(self) -> bool:
        """Whether all outputs of the answer are there."""
        return not self._left


#: What to do next: run these steps, each with the tensors of its frame; give the outputs of these frames, in order.
Turn = tuple[Sequence[tuple[Frame, int]], Sequence[Frame]]
_NOTHING: Turn = ((), ())


class Dataflow:
    """One request's way through an ensemble. It is over when `under_way` is 0.

    Each step given out to run must be `fed` back, the last time with `final`. Answers come out in the order in which
    their frames were opened.
    """

    __slots__ = ("_course", "_done", "_next", "_opened", "_stopped", "under_way")

    def __init__(self, course: Course) -> None:
        self._course = course
        #: Steps that were given out and have not ended.
        self.under_way = 0
        self._stopped = False
        #: Frames of the outputs' stage opened so far.
        self._opened = 0
        #: The number of the frame that is answered next, and frames that are complete before their turn.
        self._next = 0
        self._done: dict[int, Frame] = {}

    def begin(self, values: Iterable[tuple[int, Value]]) -> Turn:
        """`values` are the ensemble's inputs."""
        return self._put(self._open(0), values, 0)

    def feed(self, frame: Frame, step: int, values: Iterable[tuple[int, Value]] | None, final: bool) -> Turn:
        """A response of a step that ran in `frame` (None: it brings nothing but the end); `final`: there is no more."""
        if final:
            self.under_way -= 1
        if values is None or self._stopped:
            return _NOTHING
        stage = self._course.opens[step]
        return self._put(self._open(stage) if stage else frame, values, stage)

    def stop(self) -> None:
        """Give nothing out any more: the request has failed."""
        self._stopped = True

    def _open(self, stage: int) -> Frame:
        if stage != self._course.stage:
            return Frame(self._course, -1)
        frame = Frame(self._course, self._opened)
        self._opened += 1
        return frame

    def _put(self, frame: Frame, values: Iterable[tuple[int, Value]], stage: int) -> Turn:
        ready = frame.put(values)
        self.under_way += len(ready)
        return [(frame, step) for step in ready], self._answers(frame) if frame.complete() else ()

    def _answers(self, frame: Frame) -> Sequence[Frame]:
        if frame.number != self._next:
            self._done[frame.number] = frame
            return ()
        answers = [frame]
        self._next += 1
        while self._done and (following := self._done.pop(self._next, None)) is not None:
            answers.append(following)
            self._next += 1
        return answers
