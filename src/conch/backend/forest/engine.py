"""What computes a forest: treelite's interpreter, ONNX Runtime's trees where they agree with it, or its own library.

Microseconds a call, 100 trees of depth 6, one thread (treelite, ONNX Runtime, XGBoost): 1 row 27, 8, 84; 32 rows 152,
19, 103; 256 rows 1056, 211, 188; 2048 rows 8076, 1929, 904. LightGBM's own: 18, 76, 534 and 5286. So ONNX Runtime's is
the default, and XGBoost's is worth asking for where clients send hundreds of rows at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final, Protocol

import numpy as np

from conch.backend.forest.answers import Post
from conch.backend.forest.graph import UnwritableError, write_graph
from conch.backend.forest.reading import treelite
from conch.backend.forest.signature import Signature
from conch.config.forest_engine import PARAMETER
from conch.types.error import invalid

_LOG: Final = logging.getLogger(__name__)
_ROWS: Final = 256
#: How far two ways of adding up the same leaves may be apart, relative to the scores.
_TOLERANCE: Final = 1e-5

Array = np.ndarray[Any, Any]


#: Opens a library's own predictor of sums. Raises UnwritableError where there is none.
Margins = Callable[[], Callable[[Array], Array]]


class Engine(Protocol):
    """Computes one forest; safe to call from many threads, and releases the GIL."""

    name: str

    def __call__(self, x: Array) -> Array:
        """From (rows, features) of the model's number type, C-contiguous, to scores (rows, targets, classes)."""


class Interpreter:
    """treelite's GTIL: every forest, in the model's own precision."""

    name = "treelite"

    def __init__(self, model: Any, threads: int) -> None:
        self._model = model
        self._predict = treelite().gtil.predict
        self._threads = threads
        try:
            self(np.zeros((1, model.num_feature), np.float64 if model.input_type == "float64" else np.float32))
        except Exception:  # noqa: BLE001  treelite's errors have no common base
            # More threads than OpenMP is told to have (OMP_NUM_THREADS) are an error to it: as many as there are.
            self._threads = -1

    def __call__(self, x: Array) -> Array:
        return np.asarray(self._predict(self._model, x, nthread=self._threads))


class Compiled:
    """ONNX Runtime's trees; averages, base scores and the postprocessor are ours."""

    name = "onnxruntime"

    def __init__(self, model: Any, threads: int, exact: bool = False) -> None:
        """Raises UnwritableError, always where scores are to be `exact`."""
        if exact:
            raise UnwritableError("an output is of TYPE_FP64, its sums are 32-bit numbers")
        header = model.get_header_accessor()
        self._shape = (-1, int(header.get_field("num_target")[0]), int(header.get_field("num_class").max()))
        self._post = _post(header)
        base = header.get_field("base_scores").reshape(self._shape[1:]).astype(np.float32)
        self._base = base if base.any() else None
        self._averages = _averages(header, model.num_tree, self._shape[1:])
        self._session = _session(write_graph(model), threads)

    def __call__(self, x: Array) -> Array:
        sums = self._session.run(None, {"x": x})[0].reshape(self._shape)
        if self._averages is not None:
            sums /= self._averages
        if self._base is not None:
            sums += self._base
        return self._post(sums)


class Library:
    """XGBoost or LightGBM itself; the postprocessor is ours, because clients want scores where they give classes."""

    name = "library"

    def __init__(self, model: Any, margins: Margins) -> None:
        header = model.get_header_accessor()
        self._shape = (-1, int(header.get_field("num_target")[0]), int(header.get_field("num_class").max()))
        self._post = _post(header)
        self._margins = margins()

    def __call__(self, x: Array) -> Array:
        return self._post(np.array(self._margins(x)).reshape(self._shape))


def choose_engine(
    model: Any, signature: Signature, name: str, threads: int, exact: bool, label: str, margins: Margins
) -> Engine:
    """The engine called `name`; for `auto` ONNX Runtime's trees if they agree with treelite, else treelite.

    `exact`: scores are wanted as 64-bit numbers, which ONNX Runtime does not give. `margins` opens the library that
    trained the model. Raises InferError where another engine than `auto` is asked for and cannot be.
    """
    interpreter = Interpreter(model, threads)
    if name == "treelite" or (exact and name == "auto"):
        return interpreter
    try:
        engine: Engine = Library(model, margins) if name == "library" else Compiled(model, threads, exact)
        _compare(engine, interpreter, sample(model, signature))
    except UnwritableError as reason:
        if name != "auto":
            raise invalid(
                f"unable to load model '{label}', {PARAMETER} '{name}' cannot run its forest: {reason}",
                f"remove parameter '{PARAMETER}'",
            ) from None
        _LOG.info("model '%s' runs on treelite, which is slower than ONNX Runtime: %s", label, reason)
        return interpreter
    return engine


def sample(model: Any, signature: Signature) -> Array:
    """Rows that try a forest where it is delicate: at its thresholds and just beside them, and with values missing."""
    chance = np.random.default_rng(0)
    kind = np.float64 if signature.double else np.float32
    rows = chance.normal(size=(_ROWS, signature.features)).astype(kind)
    points = _thresholds(model, kind)
    for feature, values in points.items():
        picked = chance.choice(values, _ROWS).astype(kind)
        side = chance.choice(np.array([-np.inf, 0, np.inf], dtype=kind), _ROWS)
        rows[:, feature] = np.where(side == 0, picked, np.nextafter(picked, side, dtype=kind))
    rows[chance.random(rows.shape) < 0.1] = np.nan
    return rows


def _thresholds(model: Any, kind: type[np.floating[Any]]) -> dict[int, Array]:
    """Of a few trees, by feature."""
    found: dict[int, list[Array]] = {}
    for index in range(0, model.num_tree, max(1, model.num_tree // 50)):
        tree = model.get_tree_accessor(index)
        features, values = tree.get_field("split_index"), tree.get_field("threshold")
        inner = tree.get_field("cleft") != -1
        for feature in np.unique(features[inner]):
            found.setdefault(int(feature), []).append(values[inner & (features == feature)])
    return {feature: np.concatenate(parts).astype(kind) for feature, parts in found.items()}


def _compare(engine: Engine, reference: Engine, rows: Array) -> None:
    """Raises UnwritableError where the two do not agree."""
    ours, theirs = engine(rows), reference(rows)
    scale = max(1.0, float(np.abs(theirs).max(initial=0)))
    apart = float(np.abs(ours - theirs).max(initial=0)) / scale
    if not apart <= _TOLERANCE:
        raise UnwritableError(f"its answers differ from treelite's by {apart:.2g}")


def _post(header: Any) -> Post:
    post = Post(
        str(header.get_field("postprocessor")),
        float(header.get_field("sigmoid_alpha")[0]),
        float(header.get_field("ratio_c")[0]),
    )
    if not post.known:
        raise UnwritableError(f"its postprocessor is '{post.name}'")
    return post


def _averages(header: Any, trees: int, shape: tuple[int, int]) -> Array | None:
    """How many trees add to each score, where scores are averages."""
    if not int(header.get_field("average_tree_output")[0]):
        return None
    counts = np.zeros(shape, dtype=np.float32)
    for target, klass in zip(header.get_field("target_id")[:trees], header.get_field("class_id")[:trees], strict=True):
        counts[
            slice(None) if target < 0 else int(target),
            slice(None) if klass < 0 else int(klass),
        ] += 1
    return np.maximum(counts, 1)


def _session(graph: bytes, threads: int) -> Any:
    try:
        import onnxruntime as ort  # noqa: PLC0415  an optional package
    except ImportError as error:
        raise UnwritableError(f"the package onnxruntime is not installed ({error})") from None
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(graph, sess_options=options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001  its exceptions have no common base
        raise UnwritableError(f"ONNX Runtime refuses it: {error}") from None
