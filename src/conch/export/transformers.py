"""Models out of a folder of Hugging Face Transformers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from conch.export.api import ExportError
from conch.export.examples import Example
from conch.export.runtimes import need
from conch.types.dtype import FP32, INT64

#: Inputs of models of text, in Transformers' words.
_TEXT: Final = ("input_ids", "attention_mask", "token_type_ids")


def open_folder(folder: Path) -> tuple[Any, list[Example]]:
    """The model of the folder, in evaluation mode and returning a dictionary of tensors, and its usual inputs.

    Nothing is fetched from anywhere. Raises ExportError.
    """
    transformers = need("transformers", "")
    torch = need("torch", "torch")
    settings = _settings(folder)
    name = (settings.get("architectures") or ["AutoModel"])[0]
    kind = getattr(transformers, name, None)
    if kind is None:
        raise ExportError(f"{folder}: this transformers ({transformers.__version__}) knows no {name}")
    try:
        # The other attention functions are not all known to exporters.
        model = kind.from_pretrained(
            str(folder), local_files_only=True, attn_implementation="eager", dtype=torch.float32
        )  # fmt: skip
    except Exception as error:  # noqa: BLE001  it raises what it likes
        raise ExportError(f"{folder}: {type(error).__name__}: {str(error).partition(chr(10))[0]}") from None
    model.config.use_cache = False
    return _Outputs.make(torch, model.eval()), _examples(settings)


def _settings(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise ExportError(f"{folder} is no folder of Transformers: config.json: {error}") from None
    return found if isinstance(found, dict) else {}


def _examples(settings: dict[str, Any]) -> list[Example]:
    if "image_size" in settings:
        size, channels = settings["image_size"], settings.get("num_channels", 3)
        height, width = (size, size) if isinstance(size, int) else size
        return [Example("pixel_values", FP32, (2, channels, height, width))]
    names: Sequence[str] = _TEXT[: 3 if settings.get("type_vocab_size", 0) > 1 else 2]
    vocabulary = int(settings.get("vocab_size", 100))
    below = {"input_ids": vocabulary, "attention_mask": 2, "token_type_ids": 2}
    low = {"attention_mask": 1}
    return [Example(name, INT64, (2, 16), frozenset({1}), low.get(name, 0), below[name]) for name in names]


class _Outputs:
    @staticmethod
    def make(torch: Any, model: Any) -> Any:
        """The model with a plain dictionary of its tensors as result, and arguments with names."""

        class Text(torch.nn.Module):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.model = model

            def forward(
                self, input_ids: Any = None, attention_mask: Any = None, token_type_ids: Any = None,
                pixel_values: Any = None,
            ) -> Any:  # fmt: skip
                given = {
                    "input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids,
                    "pixel_values": pixel_values,
                }  # fmt: skip
                answer = self.model(**{key: value for key, value in given.items() if value is not None})
                return {key: value for key, value in answer.items() if isinstance(value, torch.Tensor)}

        return Text().eval()
