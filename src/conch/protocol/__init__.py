"""BYTES <-> TYPES, no sockets."""
