"""Other faces of the server: the metrics page."""
