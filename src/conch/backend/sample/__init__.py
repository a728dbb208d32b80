"""Backends for tests and examples, as Triton has them: decoupled ones, and one that fails when asked to."""
