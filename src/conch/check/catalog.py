"""Every rule by its id: how grave a breach is, why it matters, and which field of the config it is about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from conch.check.finding import Severity

_E, _W, _N = Severity.ERROR, Severity.WARNING, Severity.NOTE


@dataclass(frozen=True, slots=True)
class Rule:
    """`field` is the path in the config where a breach is shown, unless the finding knows better."""

    severity: Severity
    why: str
    field: str = ""


RULES: Final[dict[str, Rule]] = {
    # Folders and files.
    "repository-is-readable": Rule(_E, "models are loaded from folders that the server can read"),
    "repository-holds-models": Rule(_E, "a repository is a folder with one folder for each model"),
    "model-folder-holds-a-model": Rule(_E, "every folder of a repository is taken for a model and is loaded"),
    "model-name-is-unique": Rule(_E, "of two models of one name none is served, unless --model-namespacing is on"),
    "config-file-has-its-name": Rule(_W, "only config.pbtxt in the model's folder is read, other names are ignored"),
    "version-folder-is-there": Rule(_E, "a model's files lie in folders named by version numbers, ensembles' too"),
    "version-folder-is-a-number": Rule(_W, "folders that are no plain numbers are not versions and are ignored"),
    "version-policy-selects": Rule(_E, "at least one version must be left to serve", "version_policy"),
    "specific-versions-exist": Rule(_W, "versions that the policy names and that are not there are left out",
                                    "version_policy.specific.versions"),
    "model-file-is-there": Rule(_E, "each version that is served needs its model file", "default_model_filename"),
    "model-file-is-complete": Rule(_E, "an empty file or a Git LFS pointer stands for a model that was not fetched"),
    "label-file-is-there": Rule(_E, "labels are read when the model is loaded", "output.label_filename"),
    "warmup-file-is-there": Rule(_E, "the samples of a warm-up lie in the model's folder warmup",
                                 "model_warmup"),
    "warmup-samples-are-sound": Rule(_E, "a sample is a request: it must be one that clients could send",
                                     "model_warmup"),
    "initial-state-file-is-there": Rule(_E, "initial states lie in the model's folder initial_state",
                                        "sequence_batching.state"),
    "environment-is-there": Rule(_E, "the worker is started with the Python of this environment", "parameters"),
    "requirements-can-be-read": Rule(_E, "the model's environment is made of its requirements"),
    "batching-library-has-effect": Rule(_W, "Triton loads such a library to form batches, Conch does not"),
    "memory-suffices": Rule(_W, "loaded models take at least as much memory as their files"),
    # The config's text, name and backend.
    "config-text-is-sound": Rule(_E, "a config that cannot be read as protobuf text keeps the model from loading"),
    "map-key-is-given-once": Rule(_W, "of two entries with one key only the last one counts"),
    "name-is-the-folder": Rule(_E, "a model is called by its folder", "name"),
    "backend-can-be-told": Rule(_E, "the config or the name of the model's file must say what runs the model", "name"),
    "backend-is-known": Rule(_E, "a model runs on a backend that this server has", "backend"),
    "field-has-effect": Rule(_W, "the field is accepted, kept and shown, and changes nothing"),
    "parameter-has-effect": Rule(_W, "the backend does not know the parameter", "parameters"),
    "flag-is-given": Rule(_N, "the feature is switched on by a flag of the server"),
    "dynamic-batching-has-batches": Rule(_W, "with max_batch_size 0 requests are never put together",
                                         "dynamic_batching"),
    "instance-groups-suit-the-machine": Rule(_E, "instances are made where their group says", "instance_group"),
    "name-is-given": Rule(_E, "models are told apart by name", "name"),
    "backend-is-given": Rule(_E, "something must run the model", "platform"),
    "ensemble-has-no-backend": Rule(_E, "an ensemble runs other models and nothing itself", "backend"),
    "platform-suits-backend": Rule(_E, "platform is the older name of a backend; both must mean the same", "platform"),
    "batch-size-is-not-negative": Rule(_E, "0 stands for a model that does not batch", "max_batch_size"),
    "model-file-stays-inside": Rule(_E, "a model's config shall not read files of others", "default_model_filename"),
    "preferred-sizes-fit": Rule(_E, "no batch can be larger than max_batch_size",
                                "dynamic_batching.preferred_batch_size"),
    "default-level-is-a-level": Rule(_E, "requests without a priority need one",
                                     "dynamic_batching.default_priority_level"),
    "policies-name-levels": Rule(_E, "a policy belongs to a priority level", "dynamic_batching.priority_queue_policy"),
    "order-allows-one-level": Rule(_E, "priorities change the order that is to be preserved",
                                   "dynamic_batching.preserve_ordering"),
    "order-allows-no-delay": Rule(_E, "set-back requests change the order that is to be preserved",
                                  "dynamic_batching.preserve_ordering"),
    "fair-weights-are-sound": Rule(_E, "shares are divided by these numbers", "parameters"),
    "padding-is-sound": Rule(_E, "the server pads what this parameter says", "parameters"),
    "memory-wish-is-sound": Rule(_E, "memory is planned with what this parameter says", "parameters"),
    "traffic-is-sound": Rule(_E, "requests are divided as this parameter says", "parameters"),
    "swap-gate-is-sound": Rule(_E, "a new version is let in by what this parameter says", "parameters"),
    "cache-suits-scheduler": Rule(_E, "an answer that depends on earlier requests cannot be remembered",
                                  "response_cache"),
    "cache-suits-transactions": Rule(_E, "a stream of answers cannot be remembered", "response_cache"),
    "metrics-are-complete": Rule(_E, "a metric is chosen by its family", "model_metrics"),
    "metric-buckets-are-sound": Rule(_E, "the buckets of a histogram follow one another", "model_metrics"),
    # Inputs and outputs.
    "inputs-are-sound": Rule(_E, "requests are checked against the inputs' names, types and dims", "input"),
    "outputs-are-sound": Rule(_E, "answers are made from the outputs' names, types and dims", "output"),
    "names-are-unique": Rule(_E, "tensors are told apart by name", "input"),
    "labels-stay-inside": Rule(_E, "a model's config shall not read files of others", "output.label_filename"),
    "batch-inputs-are-sound": Rule(_E, "these inputs are made from the batch", "batch_input"),
    "batch-outputs-are-sound": Rule(_E, "these outputs are cut up by the batch", "batch_output"),
    "tensors-are-declared": Rule(_W, "a model without inputs and outputs refuses every request"),
    # ONNX files.
    "onnx-file-opens": Rule(_E, "ONNX Runtime must accept the file"),
    "onnx-external-data-is-there": Rule(_E, "weights beside the model file are read under the names that it gives"),
    "onnx-batch-dimension-is-free": Rule(_E, "a model that batches takes any size as the first dimension",
                                         "max_batch_size"),
    "onnx-dims-leave-out-batch": Rule(_E, "with max_batch_size above 0 the server adds the batch dimension itself"),
    "onnx-dims-name-batch": Rule(_E, "with max_batch_size 0 dims are the complete shape of the model's tensor"),
    "onnx-dims-agree": Rule(_E, "dims must be those of the model's tensor"),
    "onnx-types-agree": Rule(_E, "tensors are not converted: the type must be the model's"),
    "onnx-names-agree": Rule(_E, "the config's tensors are the model's, under the names that it gives"),
    "onnx-names-are-not-swapped": Rule(_E, "each entry fits the model's other tensor"),
    "onnx-inputs-are-all-listed": Rule(_E, "ONNX Runtime runs only with every mandatory input", "input"),
    "onnx-config-agrees": Rule(_E, "config and model file must say the same"),
    # model.py
    "python-file-compiles": Rule(_E, "the worker imports the file"),
    "python-class-is-there": Rule(_E, "the worker makes an object of the class TritonPythonModel"),
    "python-execute-is-there": Rule(_E, "requests are given to the method execute"),
    "python-imports-are-there": Rule(_E, "the worker imports the file, and all that it imports"),
    "python-auto-complete-works": Rule(_E, "the config is completed by the model's auto_complete_config"),
    "python-config-is-not-known": Rule(_N, "what auto_complete_config adds is known only when it is run"),
    # Sequences.
    "control-tensors-have-names": Rule(_E, "a control is an input of the model", "sequence_batching.control_input"),
    "controls-are-given-once": Rule(_E, "each control is one tensor", "sequence_batching.control_input"),
    "boolean-controls-have-two-values": Rule(_E, "one value stands for false, one for true",
                                             "sequence_batching.control_input"),
    "correlation-id-has-a-type": Rule(_E, "ids are numbers or texts", "sequence_batching.control_input"),
    "sequence-preferred-sizes-fit": Rule(_E, "no batch can be larger than max_batch_size",
                                         "sequence_batching.oldest.preferred_batch_size"),
    "slot-utilization-is-a-share": Rule(_E, "it is a share of the slots, from 0 to 1",
                                        "sequence_batching.direct.minimum_slot_utilization"),
    "states-have-names": Rule(_E, "a state is an output that becomes an input", "sequence_batching.state"),
    "initial-states-suit-states": Rule(_E, "a sequence begins with this state", "sequence_batching.state"),
    "hidden-tensors-are-apart": Rule(_E, "the server makes controls and states, clients send the inputs",
                                     "sequence_batching"),
    # Ensembles.
    "scheduling-suits-platform": Rule(_E, "an ensemble is a model with platform ensemble and steps", "platform"),
    "ensemble-runs-nothing-itself": Rule(_E, "instances, warm-up and optimization are matters of the steps' models"),
    "steps-are-complete": Rule(_E, "a step needs a model and what goes in and comes out",
                               "ensemble_scheduling.step"),
    "tensors-connect": Rule(_E, "every tensor is written by one step or is an input, and is read or is an output",
                            "ensemble_scheduling.step"),
    "ensemble-models-are-there": Rule(_E, "all models of the steps must be in the repository",
                                      "ensemble_scheduling.step"),
    "ensemble-models-are-sound": Rule(_E, "an ensemble is loaded after the models of its steps",
                                      "ensemble_scheduling.step"),
    "ensemble-has-no-circle": Rule(_E, "an ensemble that needs itself can never begin", "ensemble_scheduling.step"),
    "ensemble-version-is-served": Rule(_E, "a step with a version needs this version, see the model's version_policy",
                                       "ensemble_scheduling.step"),
    "ensemble-batch-size-fits": Rule(_E, "a batch of the ensemble goes to its models as it is", "max_batch_size"),
    "ensemble-map-names-tensors": Rule(_E, "keys of a step's maps are tensors of its model, values of the ensemble",
                                       "ensemble_scheduling.step"),
    "ensemble-inputs-are-mapped": Rule(_E, "a model's mandatory inputs must come from somewhere",
                                       "ensemble_scheduling.step"),
    "ensemble-types-agree": Rule(_E, "tensors are not converted between steps"),
    "ensemble-shapes-agree": Rule(_E, "tensors are not reshaped between steps"),
    "ensemble-steps-fit": Rule(_E, "the steps must fit the models that run them", "ensemble_scheduling.step"),
}  # fmt: skip


def rule(name: str) -> Rule:
    """Rules of configs that are not in the table are errors without a place."""
    return RULES.get(name) or Rule(_E, "the server refuses such a config")
