"""WHAT WOULD GO WRONG: model repositories checked, and mended, without a server."""
