"""The Python backend: Triton's `model.py` files, each instance in a supervised worker process."""
