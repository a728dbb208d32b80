"""Which recorder the operator has asked for, and whether it can work."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from conch.config.server import TraceOptions
from conch.observe.trace import Recorder, TraceSetting
from conch.observe.trace_file import TraceFile


def check(options: TraceOptions) -> None:
    """Whether traces can be made like this. Raises OSError with a sentence for the operator."""
    setting = TraceSetting(options.level, options.rate, options.count, options.log_frequency, options)
    fault = setting.fault()
    if fault:
        raise OSError(f"--trace-config: {fault}")
    if options.mode == "opentelemetry":
        if "TENSORS" in options.level:
            raise OSError("--trace-config: level TENSORS is not supported in mode opentelemetry")
        if not _installed():
            raise OSError("--trace-config=mode=opentelemetry needs 'pip install conch[otel]'")
        return
    if options.level:
        try:
            with Path(options.file).open("ab"):
                pass
        except OSError as error:
            raise OSError(f"--trace-config: '{options.file}' cannot be written: {error.strerror}") from error


def recorder(options: TraceOptions) -> Recorder:
    if options.mode == "opentelemetry":
        # Not at the top: it is an extra, and slow to import.
        from conch.observe.otel import Exporter  # noqa: PLC0415

        return Exporter(options)
    return TraceFile(options.file)


def _installed() -> bool:
    try:
        return importlib.util.find_spec("opentelemetry.exporter.otlp.proto.http") is not None
    except ModuleNotFoundError:
        return False
