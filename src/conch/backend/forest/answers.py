"""From the scores of a forest to what the config asks for: sums to scores, scores to classes. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Post:
    """How treelite turns a model's sums into scores: its postprocessor, and that one's numbers."""

    name: str
    alpha: float = 1.0
    ratio: float = 1.0

    @property
    def known(self) -> bool:
        return self.name in _POST

    def __call__(self, sums: Array) -> Array:
        """`sums` has shape (rows, targets, classes), and may be written over."""
        return _POST[self.name](self, sums)


@dataclass(frozen=True, slots=True)
class Answer:
    """What is said of a row with these scores."""

    #: Classes, not scores.
    decide: bool
    threshold: float
    #: Of binary classifiers: both scores, not only that of class 1.
    both: bool = False

    def __call__(self, scores: Array) -> Array:
        """From (rows, targets, classes) to (rows, width)."""
        rows, targets, classes = scores.shape
        if self.decide:
            decided = scores[:, :, 0] > self.threshold if classes == 1 else scores.argmax(axis=2)
            return decided.astype(scores.dtype)
        if self.both and classes == 1:
            return np.concatenate((1 - scores, scores), axis=2).reshape(rows, 2 * targets)
        return scores.reshape(rows, targets * classes)


def _identity(_: Post, sums: Array) -> Array:
    return sums


def _sigmoid(post: Post, sums: Array) -> Array:
    # A sum far below 0 overflows to infinity, and the score is 0, as it should be.
    with np.errstate(over="ignore"):
        return np.asarray(1 / (1 + np.exp(-post.alpha * sums)), dtype=sums.dtype)


def _softmax(_: Post, sums: Array) -> Array:
    powers = np.exp(sums - sums.max(axis=2, keepdims=True))
    return np.asarray(powers / powers.sum(axis=2, keepdims=True))


def _exponential(_: Post, sums: Array) -> Array:
    with np.errstate(over="ignore"):
        return np.asarray(np.exp(sums))


def _ratio(post: Post, sums: Array) -> Array:
    return np.asarray(np.exp2(-sums / post.ratio), dtype=sums.dtype)


def _log1p_exp(_: Post, sums: Array) -> Array:
    return np.asarray(np.logaddexp(0, sums), dtype=sums.dtype)


def _signed_square(_: Post, sums: Array) -> Array:
    return np.asarray(np.copysign(sums * sums, sums))


def _hinge(_: Post, sums: Array) -> Array:
    return (sums > 0).astype(sums.dtype)


#: treelite's postprocessors by its names for them.
_POST: Final[dict[str, Callable[[Post, Array], Array]]] = {
    "identity": _identity,
    "identity_multiclass": _identity,
    "sigmoid": _sigmoid,
    "multiclass_ova": _sigmoid,
    "softmax": _softmax,
    "exponential": _exponential,
    "exponential_standard_ratio": _ratio,
    "logarithm_one_plus_exp": _log1p_exp,
    "signed_square": _signed_square,
    "hinge": _hinge,
}
