"""Any forest, written as an ONNX graph, says what treelite says, at every threshold and with values missing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from conch.backend.forest import onnx_bytes
from conch.backend.forest.engine import Compiled, Interpreter, sample
from conch.backend.forest.signature import read_signature

pytest.importorskip("treelite", reason="pip install 'conch[forest]'")
pytest.importorskip("onnxruntime", reason="pip install 'conch[onnx]'")
FEATURES = 3

numbers = st.sampled_from([-2.0, -1.0, -0.1, 0.0, 0.1, 0.25, 1.0, 3.0])
splits = st.tuples(st.integers(0, FEATURES - 1), numbers, st.booleans(), st.sampled_from(["<", "<=", ">", ">=", "=="]))


@st.composite
def forests(draw: st.DrawFn) -> Any:
    """Trees of up to 7 splits over 3 features, by one of treelite's ways to give trees to targets and classes."""
    from treelite.model_builder import Metadata, ModelBuilder, PostProcessorFunc, TreeAnnotation

    targets, classes = draw(st.sampled_from([(1, 1), (1, 3), (2, 1)]))
    vectors = draw(st.booleans())
    trees = draw(st.integers(1, 5))
    width = (1, classes) if vectors else (1, 1)
    target_of = [draw(st.integers(0, targets - 1)) for _ in range(trees)]
    class_of = [-1 if vectors and classes > 1 else draw(st.integers(0, classes - 1)) for _ in range(trees)]
    number = draw(st.sampled_from(["float32", "float64"]))
    post = draw(st.sampled_from(["identity", "sigmoid", "exponential"] if classes == 1 else ["softmax"]))
    builder = ModelBuilder(
        threshold_type=number,
        leaf_output_type=number,
        metadata=Metadata(
            num_feature=FEATURES,
            task_type="kMultiClf" if classes > 1 else "kRegressor",
            average_tree_output=draw(st.booleans()),
            num_target=targets,
            num_class=[classes] * targets,
            leaf_vector_shape=width if vectors and classes > 1 else (1, 1),
        ),
        tree_annotation=TreeAnnotation(num_tree=trees, target_id=target_of, class_id=class_of),
        postprocessor=PostProcessorFunc(name=post),
        base_scores=[draw(numbers) for _ in range(targets * classes)],
    )
    for _ in range(trees):
        builder.start_tree()
        inner = draw(st.integers(0, 7))
        for node in range(2 * inner + 1):
            builder.start_node(node)
            if node < inner:
                feature, threshold, left, compare = draw(splits)
                builder.numerical_test(
                    feature_id=feature,
                    threshold=threshold,
                    default_left=left,
                    opname=compare,
                    left_child_key=2 * node + 1,
                    right_child_key=2 * node + 2,
                )
            elif vectors and classes > 1:
                builder.leaf([draw(numbers) for _ in range(classes)])
            else:
                builder.leaf(draw(numbers))
            builder.end_node()
        builder.end_tree()
    return builder.commit()


@settings(max_examples=150, deadline=None)
@given(forests())
def test_a_graph_says_what_its_forest_says(model: Any) -> None:
    """Comparisons, missing values, targets, classes, averages and base scores are carried over."""
    rows = sample(model, read_signature(model))
    expected = Interpreter(model, 1)(rows)
    # An average of no trees is no number to treelite; no trainer makes such forests.
    assume(np.isfinite(expected).all())
    np.testing.assert_allclose(Compiled(model, 1)(rows), expected, rtol=1e-5, atol=1e-5)


@given(st.lists(st.integers(0, 2**40), max_size=30))
def test_numbers_are_packed_as_protobuf_does(values: list[int]) -> None:
    """Arrays of whole numbers are written at once, in protobuf's form."""
    onnx = pytest.importorskip("onnx", reason="pip install onnx")
    (attribute,) = onnx.NodeProto.FromString(onnx_bytes.node("K", {"a": np.array(values, dtype=np.int64)})).attribute
    assert (attribute.name, list(attribute.ints)) == ("a", values)
