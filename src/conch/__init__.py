"""Conch: an inference server in Python, a drop-in replacement for NVIDIA Triton Inference Server."""

__version__ = "0.1.0"

#: The Triton release whose behaviour Conch follows, reported as the server version over both protocols.
TRITON_VERSION = "2.73.0"
