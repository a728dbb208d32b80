"""WHERE MODELS COME FROM: model repositories on local disks."""
