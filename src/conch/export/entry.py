"""The whole way of one export: run, write, run again, compare, and lay a repository entry."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from conch.adopt.api import AdoptError, Entry, said
from conch.adopt.lay import lay
from conch.export.agreement import Difference, compare
from conch.export.api import Call, ExportError, Tolerance, Written
from conch.export.examples import Example, arrays
from conch.export.runtimes import opened
from conch.export.shapes import make_config
from conch.pb.model_config_pb2 import ModelConfig


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be made of a model. `max_batch_size` 0 exports shapes as they are."""

    name: str
    into: Path
    max_batch_size: int
    tolerance: Tolerance
    force: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    folder: Path
    config: ModelConfig
    differences: Sequence[Difference]
    #: How many calls, of how many sizes, were compared.
    calls: int


def export(order: Order, examples: Sequence[Example], call: Call, write: Callable[[Sequence[str]], Written]) -> Report:
    """`write` gets the names of the outputs. Raises ExportError, above all where the outputs do not agree."""
    batching = order.max_batch_size > 0
    rows = examples[0].shape[0] if examples[0].shape else 1
    open_ = any(each.open for each in examples)
    expected = call(arrays(examples))
    other = call(arrays(examples, rows + 1 if batching else None, 1 if open_ else 0))
    written = write(list(expected))
    sizes: list[tuple[int | None, int]] = [(None, 0)]
    if batching:
        sizes += [(1, 0), (order.max_batch_size, 0)]
    if open_:
        sizes.append((None, 3))
    worst: dict[str, Difference] = {}
    with opened(written) as exported:
        for seed, (count, more) in enumerate(sizes):
            inputs = arrays(examples, count, more, seed)
            try:
                found = exported(inputs)
            except Exception as error:
                shapes = {name: list(each.shape) for name, each in inputs.items()}
                text = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
                raise ExportError(f"the exported model cannot be run with {shapes}: {text}") from error
            keys = dict(zip(expected, found, strict=False))
            for each in compare(call(inputs), found, order.tolerance):
                if each.output not in worst or each.excess > worst[each.output].excess:
                    worst[each.output] = each
    _judge(worst, order.tolerance)
    config = make_config(order.name, written, examples, expected, other, keys, order.max_batch_size)
    return Report(_lay(order, written, config), config, list(worst.values()), len(sizes))


def _judge(worst: dict[str, Difference], tolerance: Tolerance) -> None:
    bad = [each for each in worst.values() if each.excess > 1]
    if bad:
        each = max(bad, key=lambda one: one.excess)
        raise ExportError(
            f"output '{each.output}' of the exported model differs by {each.largest:.3g}, more than the tolerance "
            f"allows (relative {tolerance.relative:g}, absolute {tolerance.absolute:g}); nothing was written",
            "--tolerance says what is allowed; a large difference is a wrong export",
        )


def _lay(order: Order, written: Written, config: ModelConfig) -> Path:
    files = {f"1/{written.filename}": written.content, **{f"1/{name}": each for name, each in written.more.items()}}
    entry = Entry(order.name, config, files, "exported model", Path(written.filename))
    try:
        order.into.mkdir(parents=True, exist_ok=True)
        return lay([entry], order.into, copy=True, force=order.force)[0]
    except AdoptError as error:
        raise ExportError(str(error.args[0]), error.hint) from None
    except OSError as error:
        raise ExportError(said(error)) from None
