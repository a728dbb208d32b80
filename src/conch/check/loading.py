"""What the server makes of a complete config before any backend sees it: labels, warm-up samples, initial states."""

from __future__ import annotations

from conch.check.locate import locate
from conch.check.outline import Field
from conch.check.subject import Subject
from conch.config.sequence_tensors import sequence_tensors, with_hidden_tensors
from conch.config.spec import model_spec
from conch.pb.model_config_pb2 import ModelConfig
from conch.registry.labels import with_labels
from conch.registry.samples import samples
from conch.service.checks import check_inputs
from conch.types.error import InferError

_LIBRARY = "batchstrategy.so"


def parts_can_be_made(subject: Subject) -> None:
    """Only for a config without errors: what else is wrong shows in these, too."""
    config = subject.config
    if config is None or not subject.complete or subject.failed or not subject.served:
        return
    for rule, make in (
        ("label-file-is-there", _labels),
        ("warmup-samples-are-sound", _samples),
        ("initial-state-file-is-there", _states),
    ):
        try:
            make(subject, config)
        except InferError as error:
            subject.find(
                rule, error.message, error.hint, at=_file(subject.root, error) or locate(subject.root, error.message)
            )


def nothing_is_left_out(subject: Subject) -> None:
    """Native code that Triton would load, and that is not supported here."""
    for folder in (subject.directory, *[subject.version_folder(version) for version in subject.served]):
        if (folder / _LIBRARY).is_file():
            subject.find(
                "batching-library-has-effect",
                f"{_LIBRARY} is ignored: custom batching libraries are not supported",
                "use conch_padding, priorities or preferred sizes instead",
                at=folder / _LIBRARY,
            )


def _labels(subject: Subject, config: ModelConfig) -> None:
    with_labels(model_spec(config, max(subject.served)), config, subject.directory)


def _samples(subject: Subject, config: ModelConfig) -> None:
    spec = model_spec(config, max(subject.served))
    samples(config, spec, with_hidden_tensors(spec, config), subject.directory, check_inputs, None)


def _states(subject: Subject, config: ModelConfig) -> None:
    if config.HasField("sequence_batching"):
        sequence_tensors(config, subject.directory)


def _file(root: Field, error: InferError) -> Field | None:
    """The field that names a file which the message names."""
    fields = (each for each in root.walk() if each.name in {"input_data_file", "data_file", "label_filename"})
    return next((each for each in fields if each.text and each.text in error.message), None)
