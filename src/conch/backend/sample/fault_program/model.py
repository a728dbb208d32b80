"""Runs models of the `fault` backend: output i is input i, unless something is to go wrong.

What goes wrong is a text of `name` or `name=value` pairs, split by commas. It stands in the config's parameter `load`
(for loading) or `execute` (for every request), in a request's parameter `fault`, or in its input FAULT (STRING):

    delay=MS        first wait so long
    fail[=TEXT]     answer with an error; `code=NAME` says which of Triton's (INTERNAL)
    raise[=TEXT]    raise an exception, which fails the whole batch
    exit[=CODE]     the process leaves
    crash           the process is killed by SIGSEGV
    hang            never answer
    every=N         only each N-th request (of those with this text)
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import threading
import time
from collections.abc import Iterator

from conch.backend.python import pb_utils

_KNOWN = frozenset({"delay", "fail", "code", "raise", "exit", "crash", "hang", "every"})
_CODES = (
    "UNKNOWN",
    "INTERNAL",
    "NOT_FOUND",
    "INVALID_ARG",
    "UNAVAILABLE",
    "UNSUPPORTED",
    "ALREADY_EXISTS",
    "CANCELLED",
)


class Fault(pb_utils.TritonModelException):
    """What `raise` raises."""


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config: pb_utils.ModelConfig) -> pb_utils.ModelConfig:
        known = config.as_dict()
        if not known.get("input") and not known.get("output"):
            config.add_input({"name": "INPUT0", "data_type": "TYPE_FP32", "dims": [-1]})
            config.add_output({"name": "OUTPUT0", "data_type": "TYPE_FP32", "dims": [-1]})
            config.set_max_batch_size(known.get("max_batch_size") or 8)
        return config

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        parameters = {name: each["string_value"] for name, each in config.get("parameters", {}).items()}
        self._execute = parse(parameters.get("execute", ""))
        self._inputs = [each["name"] for each in config["input"] if each["name"] != "FAULT"]
        self._outputs = [each["name"] for each in config["output"]]
        self._counters: dict[str, Iterator[int]] = {}
        for name in sorted(parameters.keys() - {"load", "execute", "EXECUTION_ENV_PATH", "MAX_CONCURRENT_EXECUTIONS"}):
            if not name.startswith("conch_"):
                pb_utils.Logger.log_warn(
                    f"model '{args['model_name']}': parameter '{name}' has no effect, the fault backend knows load and "
                    "execute"
                )
        load = parse(parameters.get("load", ""))
        self._suffer(load)
        if "fail" in load:
            raise Fault(load["fail"] or "this model fails when it is loaded")

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: pb_utils.InferenceRequest) -> pb_utils.InferenceResponse:
        try:
            wanted = self._execute | self._asked(request)
        except ValueError as error:
            return refusal(str(error), "INVALID_ARG")
        if "every" in wanted:
            count = next(self._counters.setdefault(json.dumps(wanted), itertools.count(1)))
            wanted = {} if count % int(wanted["every"]) else wanted
        self._suffer(wanted)
        if "fail" in wanted:
            return refusal(wanted["fail"] or "this request was to fail", wanted.get("code", "INTERNAL"))
        tensors = []
        for into, out in zip(self._inputs, self._outputs):  # noqa: B905  Python 3.9 has no `strict`
            tensor = pb_utils.get_input_tensor_by_name(request, into)
            if tensor is not None:
                tensors.append(pb_utils.Tensor(out, tensor.as_numpy()))
        return pb_utils.InferenceResponse(tensors)

    def _asked(self, request: pb_utils.InferenceRequest) -> dict[str, str]:
        asked = parse(str(json.loads(request.parameters() or "{}").get("fault", "")))
        tensor = pb_utils.get_input_tensor_by_name(request, "FAULT")
        if tensor is not None:
            for element in tensor.as_numpy().ravel():
                asked |= parse(element.decode())
        return asked

    def _suffer(self, wanted: dict[str, str]) -> None:
        if "delay" in wanted:
            time.sleep(int(wanted["delay"]) / 1000)
        if "hang" in wanted:
            threading.Event().wait()
        if "exit" in wanted:
            os._exit(int(wanted["exit"] or 1))
        if "crash" in wanted:
            os.kill(os.getpid(), signal.SIGSEGV)
        if "raise" in wanted:
            raise Fault(wanted["raise"] or "this batch was to fail")


def refusal(text: str, code: str) -> pb_utils.InferenceResponse:
    return pb_utils.InferenceResponse([], pb_utils.TritonError(text, getattr(pb_utils.TritonError, code)))


def parse(text: str) -> dict[str, str]:
    """Raises ValueError, in words, for what is not understood."""
    wanted: dict[str, str] = {}
    for part in filter(None, (each.strip() for each in text.split(","))):
        name, _, value = part.partition("=")
        if name not in _KNOWN:
            raise ValueError(f"unknown fault '{name}', expected some of {', '.join(sorted(_KNOWN))}")
        if (name in ("delay", "every") and not value.isdecimal()) or (
            name == "exit" and value and not value.isdecimal()
        ):
            raise ValueError(f"fault '{name}' is '{value}', expected a whole number such as {name}=10")
        if name == "every" and int(value) == 0:
            raise ValueError("fault 'every' is 0, expected 1 or more")
        if name == "code" and value not in _CODES:
            raise ValueError(f"fault 'code' is '{value}', expected one of {', '.join(_CODES)}")
        wanted[name] = value
    return wanted
