"""Answers that are remembered: the response cache."""
