"""ONNX models through ONNX Runtime."""

from conch.backend.onnx.backend import OnnxBackend

__all__ = ["OnnxBackend"]
