"""A classifier of scikit-learn, as it was saved."""

from pathlib import Path

import joblib
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        # A pickle is code: load only what you have written yourself.
        self.estimator = joblib.load(Path(args["model_repository"]) / args["model_version"] / "estimator.joblib")

    def execute(self, requests):
        inputs = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        # One call for all requests of the batch.
        found = self.estimator.predict_proba(np.concatenate(inputs)).astype(np.float32)
        parts = np.split(found, np.cumsum([len(x) for x in inputs])[:-1])
        return [pb_utils.InferenceResponse([pb_utils.Tensor("probabilities", part)]) for part in parts]
