"""WHAT THE OPERATOR WANTS: the command line and model configurations."""
