"""Forests of decision trees (XGBoost, LightGBM, scikit-learn, treelite), as Triton's backend `fil` serves them."""

from conch.backend.forest.backend import ForestBackend

__all__ = ["ForestBackend"]
