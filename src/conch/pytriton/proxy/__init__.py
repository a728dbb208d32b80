"""Where PyTriton keeps what inference callables get."""
