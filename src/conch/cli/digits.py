"""Handwritten digits for the demo: a classifier for them, its model repository, and how they look on a terminal."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.text import Text

MODEL: Final = "digits"


@dataclass(frozen=True, slots=True)
class Digits:
    """Handwriting kept from the training: images of 64 values from 0 (white) to 16 (ink), and what they show."""

    images: Any
    truth: Any


def train() -> tuple[Any, Digits]:
    """A fitted classifier, and the quarter of the 1,797 images that it has not seen. The same every time."""
    from sklearn.datasets import load_digits  # noqa: PLC0415
    from sklearn.model_selection import train_test_split  # noqa: PLC0415
    from sklearn.neural_network import MLPClassifier  # noqa: PLC0415
    from sklearn.pipeline import make_pipeline  # noqa: PLC0415
    from sklearn.preprocessing import MinMaxScaler  # noqa: PLC0415

    data = load_digits()
    images, unseen, digits, truth = train_test_split(
        data.data.astype("float32"), data.target, test_size=0.25, random_state=7, stratify=data.target
    )
    network = MLPClassifier((128, 64), alpha=1e-3, max_iter=300, random_state=1)
    return make_pipeline(MinMaxScaler(), network).fit(images, digits), Digits(unseen, truth)


def write_repository(repository: Path, model: Any) -> int:
    """A model repository with a bare ONNX file: the server works the rest out. Returns the file's size."""
    from skl2onnx import to_onnx  # noqa: PLC0415
    from skl2onnx.common.data_types import FloatTensorType  # noqa: PLC0415

    inputs = [("image", FloatTensorType([None, 64]))]
    # zipmap would make the probabilities a list of dictionaries, which is no tensor.
    exported = to_onnx(model, initial_types=inputs, options={id(model): {"zipmap": False}}, target_opset=17)
    path = repository / MODEL / "1" / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.write_bytes(exported.SerializeToString())


def show_images(console: Console, digits: Digits, answers: dict[int, int], brief: bool) -> None:
    """Each image with the digit that the server read, several side by side; mistakes come last and in red."""
    order = sorted(answers, key=lambda index: bool(answers[index] != digits.truth[index]))
    mistakes = sum([answers[index] != digits.truth[index] for index in order])
    if brief:
        order = order[:8] + order[max(8, len(order) - mistakes) :]
    console.print("\n4. what the server read (in red: what it misread, and what was meant)\n")
    width = max(1, (console.width - 3) // 11)
    for begin in range(0, len(order), width):
        tiles = [tile(digits.images[i], answers[i], int(digits.truth[i])) for i in order[begin : begin + width]]
        for lines in zip(*tiles, strict=True):
            console.print(Text("   ").join([Text(""), *lines]), no_wrap=True, crop=True)


def tile(image: Any, answer: int, truth: int) -> list[Text]:
    """An 8 x 8 image as 4 lines of half blocks, in greys where the terminal has colours, and what was read below it."""
    rows = image.reshape(8, 8)
    lines = []
    for upper, lower in zip(rows[::2], rows[1::2], strict=True):
        line = Text()
        for above, below in zip(upper, lower, strict=True):
            block = " ▄▀█"[2 * (above >= 6) + (below >= 6)]
            ink = max(float(above), float(below))
            grey = int(110 + ink * 145 / 16)
            line.append(block, style=f"rgb({grey},{grey},{grey})" if block != " " else "")
        lines.append(line)
    right = answer == truth
    caption = f"{answer}" if right else f"{answer}, not {truth}"
    return [*lines, Text(f"{caption:^8}", style="green" if right else "bold red"), Text(" " * 8)]
