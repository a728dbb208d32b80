"""The order of a stream's answers: those of models that answer once come in the order of their requests. Pure."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

Answer = TypeVar("Answer")


class Turn(Generic[Answer]):
    """A request's place in the line; `answer` is None until it is known."""

    __slots__ = ("answer",)

    def __init__(self) -> None:
        self.answer: Answer | None = None


class Line(Generic[Answer]):
    """Requests line up as they come; an answer leaves when all in front of it have left.

    Requests to decoupled models do not line up: their answers go out as they come.
    """

    __slots__ = ("_turns",)

    def __init__(self) -> None:
        self._turns: deque[Turn[Answer]] = deque()

    def join(self) -> Turn[Answer]:
        turn: Turn[Answer] = Turn()
        self._turns.append(turn)
        return turn

    def settle(self, turn: Turn[Answer], answer: Answer) -> list[Answer]:
        """`turn` has its answer, which must be its only one. The answers that may leave now, in order."""
        turn.answer = answer
        turns = self._turns
        leaving: list[Answer] = []
        while turns and (first := turns[0].answer) is not None:
            turns.popleft()
            leaving.append(first)
        return leaving

    def __len__(self) -> int:
        """Requests in the line, with and without an answer."""
        return len(self._turns)
