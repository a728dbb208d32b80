"""TensorFlow Serving: `<model>/<version>/saved_model.pb` folders, and models.config files that list them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from conch.adopt.api import AdoptError, Entry
from conch.adopt.textproto import TextError, parse_fields
from conch.pb.model_config_pb2 import ModelConfig

_PLATFORM: Final = "tensorflow_savedmodel"


def read_folders(path: Path, name: str) -> list[Entry]:
    """One model's folder, or a folder of such."""
    if _versions(path):
        entries = [_entry(path, name or path.resolve().name, path)]
    else:
        entries = [_entry(each, name or each.name, each) for each in sorted(path.iterdir()) if _versions(each)]
        left = [each.name for each in sorted(path.iterdir()) if each.is_dir() and not _versions(each)]
        if entries and left:
            entries[0].unmapped.append(f"folders without a SavedModel: {', '.join(left)}")
    for entry in entries:
        entry.mapped.append("TensorFlow Serving serves the newest version, and so does the default version policy")
    return entries


def read_models_config(path: Path, name: str) -> list[Entry]:
    """The file of `--model_config_file`. Raises AdoptError."""
    try:
        fields = parse_fields(path.read_text())
    except (TextError, UnicodeDecodeError) as error:
        raise AdoptError(f"{path}: {error}") from None
    configs = [each for group in fields.get("model_config_list", []) for each in group.get("config", [])]
    if not configs:
        raise AdoptError(f"{path}: there is no model_config_list with a config in it")
    entries = [_listed(path, each, name) for each in configs]
    batching = next((path.with_name(each) for each in ("batching_parameters.txt", "batching.config")
                     if path.with_name(each).is_file()), None)  # fmt: skip
    if batching is not None:
        for entry in entries:
            _batching(entry, batching)
    return entries


def _listed(file: Path, config: dict[str, list[Any]], name: str) -> Entry:
    called, base = _first(config, "name"), _first(config, "base_path")
    if not called or not base:
        raise AdoptError(f"{file}: a config without name or base_path: {config}")
    if "://" in base:
        raise AdoptError(f"{file}: base_path {base} of model '{called}' is remote", "copy it here, or import it there")
    folder = (file.parent / base) if not Path(base).is_absolute() else Path(base)
    if not folder.is_dir() and (file.parent / Path(base).name).is_dir():
        # Paths in such files are those in a container; beside the file lies what is meant.
        folder = file.parent / Path(base).name
    if not folder.is_dir():
        raise AdoptError(f"{file}: base_path of model '{called}' is {base}, and there is no such folder")
    entry = _entry(folder, name or called, file)
    _policy(entry, config)
    for key, values in config.items():
        if key == "version_labels":
            labels = ", ".join(f"{_first(each, 'key')} = {_first(each, 'value')}" for each in values)
            entry.unmapped.append(f"version_labels ({labels}): clients name versions by number")
        elif key == "model_platform" and values != ["tensorflow"]:
            raise AdoptError(f"{file}: model_platform of model '{called}' is {values[0]}, expected tensorflow")
        elif key not in ("name", "base_path", "model_platform", "model_version_policy"):
            entry.unmapped.append(f"{key} of {file.name}")
    return entry


def _policy(entry: Entry, config: dict[str, list[Any]]) -> None:
    for policy in config.get("model_version_policy", []):
        target = entry.config.version_policy
        if "all" in policy:
            target.all.SetInParent()
        elif "specific" in policy:
            versions = [int(each) for each in policy["specific"][0].get("versions", [])]
            target.specific.versions.extend(versions)
        else:
            target.latest.num_versions = int(_first((policy.get("latest") or [{}])[0], "num_versions") or 1)
        entry.mapped.append("model_version_policy -> version_policy")


def _batching(entry: Entry, file: Path) -> None:
    try:
        fields = parse_fields(file.read_text())
    except (TextError, UnicodeDecodeError) as error:
        raise AdoptError(f"{file}: {error}") from None
    config = entry.config
    for key, values in fields.items():
        value = _first(values[0], "value") if isinstance(values[0], dict) else values[0]
        match key:
            case "max_batch_size":
                config.max_batch_size = int(value)
            case "batch_timeout_micros":
                config.dynamic_batching.max_queue_delay_microseconds = int(value)
            case "allowed_batch_sizes":
                config.dynamic_batching.preferred_batch_size.extend(int(each) for each in values if str(each).isdigit())
            case "max_enqueued_batches":
                size = int(_first((fields.get("max_batch_size") or [{}])[0], "value") or 1)
                config.dynamic_batching.default_queue_policy.max_queue_size = int(value) * size
            case _:
                entry.unmapped.append(f"{key} {value} of {file.name}")
                continue
        entry.mapped.append(f"{key} {value} -> dynamic batching")
    if config.max_batch_size == 0:
        config.ClearField("dynamic_batching")


def _entry(folder: Path, name: str, source: Path) -> Entry:
    files: dict[str, Path | bytes] = {}
    for version in _versions(folder):
        # TensorFlow Serving's exporters pad versions with zeros, which Triton takes for no versions.
        files[f"{int(version.name)}/model.savedmodel"] = version
    if not files:
        raise AdoptError(f"{folder} has no version folder with a saved_model.pb")
    config = ModelConfig(platform=_PLATFORM, backend="tensorflow")
    mapped = [f"version {each.name} -> {name}/{int(each.name)}/model.savedmodel" for each in _versions(folder)]
    entry = Entry(name, config, files, "TensorFlow Serving model", source, mapped)
    for version in _versions(folder):
        if (version / "assets.extra").is_dir():
            entry.unmapped.append(f"{version.name}/assets.extra: warm-up requests of TensorFlow Serving (model_warmup)")
    return entry


def _versions(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(
        (each for each in folder.iterdir() if each.name.isdecimal() and (each / "saved_model.pb").is_file()),
        key=lambda each: int(each.name),
    )


def _first(fields: dict[str, list[Any]], key: str) -> str:
    values = fields.get(key)
    return str(values[0]) if values else ""
