"""HOW A MODEL RUNS: one adapter per framework, all behind `backend.api`."""
