"""Model configs as text: `config.pbtxt` in and out, with errors that name the place and the way out."""

from __future__ import annotations

from google.protobuf import text_format

from conch.config import mistakes
from conch.config.enums import unknown_value
from conch.pb.model_config_pb2 import ModelConfig
from conch.pb.pool import POOL
from conch.types.error import InferError, invalid


def parse_text(text: str | bytes, source: str) -> ModelConfig:
    """Read protobuf text format.

    `source` names the text in errors: `failed to read text proto from <source>:<line>:<column>: <what is wrong>`,
    of which the first part is Triton's. Lines and columns count from 1. Raises InferError (INVALID_ARG) and nothing
    else, whatever the text.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode()
        text = text.removeprefix("\ufeff")
        config: ModelConfig = text_format.Parse(text, ModelConfig(), descriptor_pool=POOL)
    except text_format.ParseError as error:
        raise _refusal(source, mistakes.explain(error, str(text))) from None
    except UnicodeDecodeError as error:
        found = f"byte {error.start} is not UTF-8"
        raise invalid(f"failed to read text proto from {source}: {found}", "save the file as UTF-8 text") from None
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise invalid(f"failed to read text proto from {source}: {type(error).__name__}: {str(error)[:200]}") from None
    if (unknown := unknown_value(config)) is not None:
        raise invalid(f"failed to read text proto from {source}: {unknown.found}", unknown.hint)
    return config


def format_text(config: ModelConfig) -> str:
    """The config as protobuf text format; `parse_text` reads it back equal."""
    return text_format.MessageToString(config, as_utf8=True, descriptor_pool=POOL)


def _refusal(source: str, mistake: mistakes.Mistake) -> InferError:
    place = f"{source}:{mistake.line}:{mistake.column}"
    return invalid(f"failed to read text proto from {place}: {mistake.found}", mistake.hint)
