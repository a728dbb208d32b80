"""WHERE BYTES LIVE: the shared memory that clients register, of the system and of GPUs."""
