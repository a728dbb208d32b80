"""What a forest says of itself, and which tensors follow from it and the plan. Pure but for asking the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from conch.backend.forest.options import ForestPlan

INPUT: Final = "input__0"
OUTPUT: Final = "output__0"
#: Triton's name for an output of Shapley values.
SHAP_OUTPUT: Final = "treeshap_output"

#: treelite's numbers of task types (its task_type.h); regression and others: 1, 3, 4.
_BINARY: Final = 0
_MULTICLASS: Final = 2


@dataclass(frozen=True, slots=True)
class Signature:
    """`classes` counts scores of each target: 1 for regression and for binary classification by one score."""

    features: int
    targets: int
    classes: int
    task: int
    #: Whether thresholds and leaves are 64-bit numbers.
    double: bool
    postprocessor: str
    #: Whether each leaf holds a distribution over the classes.
    distributions: bool = False

    @property
    def classifies(self) -> bool:
        """As the model's own objective says."""
        return self.task in (_BINARY, _MULTICLASS)

    @property
    def multiclass(self) -> bool:
        return self.task == _MULTICLASS


def read_signature(model: Any) -> Signature:
    """Of a `treelite.Model`."""
    header = model.get_header_accessor()
    return Signature(
        int(model.num_feature),
        int(header.get_field("num_target")[0]),
        int(header.get_field("num_class").max()),
        int(header.get_field("task_type")[0]),
        model.input_type == "float64",
        str(header.get_field("postprocessor")),
        int(header.get_field("leaf_vector_shape")[1]) > 1,
    )


def classifies(plan: ForestPlan, signature: Signature) -> bool:
    """Whether answers are classes (or their scores): as the config says, else as the model says."""
    return signature.classifies if plan.classifier is None else plan.classifier


def output_width(plan: ForestPlan, signature: Signature) -> int:
    """Numbers per row of the output, as FIL gives them: one class, or one score per class; each target's value.

    A binary classifier by one score has two with predict_proba, as scikit-learn's. A config may say 1 instead.
    """
    if not classifies(plan, signature) or plan.predict_proba:
        if plan.predict_proba and signature.classes == 1 and classifies(plan, signature):
            return 2 * signature.targets
        return signature.classes * signature.targets
    return signature.targets
