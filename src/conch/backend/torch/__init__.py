"""PyTorch models: TorchScript and exported programs in the server, compiled packages and Python modules in workers."""
