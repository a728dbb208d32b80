"""`conch export`: makes a repository entry out of a model of PyTorch, scikit-learn or Transformers."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from conch.export.api import Call, ExportError, Tolerance, Written
from conch.export.entry import Order, Report, export
from conch.export.examples import Example, parse_example


def main(argv: Sequence[str]) -> int:
    """Exit code 0 when the entry is there, 1 when it is not, 2 for a wrong command line."""
    options = _parser().parse_args(argv)
    try:
        report = _export(options)
    except ExportError as error:
        print(f"conch export: {error}", file=sys.stderr)
        return 1
    print(described(report))
    return 0


def described(report: Report) -> str:
    """What was compared, and where the entry is."""
    lines = [f"compared {report.calls} calls of different sizes with the model itself, largest differences:"]
    lines += [f"  {each.output}: {each.largest:.3g}" for each in report.differences]
    lines.append(f"wrote {report.folder} (backend {report.config.backend})")
    lines.append(f"serve it: conch serve {report.folder.parent}")
    return "\n".join(lines)


def _export(options: argparse.Namespace) -> Report:
    examples = [parse_example(text) for text in options.example]
    find = {"torch": _torch, "sklearn": _sklearn, "transformers": _transformers}[options.kind]
    name, examples, call, write = find(options, examples)
    order = Order(
        options.name or name,
        options.into,
        0 if options.no_batch else options.max_batch_size,
        Tolerance(options.tolerance, options.tolerance),
        options.force,
    )
    return export(order, examples, call, write)


_Found = tuple[str, list[Example], Call, Callable[[Sequence[str]], Written]]


def _torch(options: argparse.Namespace, examples: list[Example]) -> _Found:
    from conch.export.modules import caller, check_names, find_module, write  # noqa: PLC0415  one kind a run

    if not examples:
        raise ExportError("PyTorch does not say what a model takes", "add --example x=FP32:1,3,224,224 for each input")
    module = find_module(options.source).eval()
    check_names(module, examples)
    name = Path(options.source.rpartition(":")[0]).stem
    return name, examples, caller(module), partial(_write, write, module, options, examples)


def _transformers(options: argparse.Namespace, examples: list[Example]) -> _Found:
    from conch.export.modules import caller, check_names, write  # noqa: PLC0415  one kind a run
    from conch.export.transformers import open_folder  # noqa: PLC0415

    folder = Path(options.source)
    module, usual = open_folder(folder)
    examples = examples or usual
    check_names(module, examples)
    return folder.resolve().name, examples, caller(module), partial(_write, write, module, options, examples)


def _write(
    write: Callable[..., Written],
    module: object,
    options: argparse.Namespace,
    examples: list[Example],
    outputs: Sequence[str],
) -> Written:
    return write(module, options.to, examples, outputs, batching=not options.no_batch)


def _sklearn(options: argparse.Namespace, examples: list[Example]) -> _Found:
    from conch.export.estimators import caller, example, open_estimator, write  # noqa: PLC0415  one kind a run

    if options.to != "onnx":
        raise ExportError(f"scikit-learn models cannot be exported to {options.to}", "--to onnx can be had")
    path = Path(options.source)
    estimator = open_estimator(path, trusted=options.trusted)
    one = example(estimator, examples)
    return path.stem, [one], caller(estimator, one.name), lambda _: write(estimator, one)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="conch export",
        description=__doc__,
        epilog="The exported model is run beside the model itself, in batches of different sizes; where they differ by "
        "more than the tolerance, nothing is written.",
    )
    add = parser.add_argument
    add("kind", choices=["torch", "sklearn", "transformers"], metavar="KIND", help="torch, sklearn or transformers")
    add("source", metavar="SOURCE", help="FILE.py:make_model (torch), a joblib file (sklearn), a folder (transformers)")
    add("--to", choices=["onnx", "torchscript", "pt2", "openvino"], default="onnx", help="the format (default: onnx)")
    add("--example", action="append", default=[], metavar="NAME=TYPE:DIMS",
        help="an input of the model, such as x=FP32:8,3,224,224; a size with + behind it may be any")  # fmt: skip
    add("--into", type=Path, default=Path("model_repository"), metavar="REPOSITORY",
        help="where the entry goes (default: ./model_repository)")  # fmt: skip
    add("--name", default="", help="what the model is called (default: the source's name)")
    add("--max-batch-size", type=_positive, default=8, metavar="N", help="default: 8")
    add("--no-batch", action="store_true", help="the first dimension is no batch: keep shapes as given")
    add("--tolerance", type=float, default=1e-4, metavar="T",
        help="largest relative and absolute difference of outputs (default: 1e-4)")  # fmt: skip
    add("--trusted", action="store_true", help="open a pickle, which may run any code")
    add("--force", action="store_true", help="replace a model that is there already")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number above 0; for models without a batch: --no-batch")
    return int(text)
