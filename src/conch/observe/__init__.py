"""WHAT WE CAN SEE: statistics, metrics and the log."""
