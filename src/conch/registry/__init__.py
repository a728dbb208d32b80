"""WHAT IS SERVABLE NOW: loading, versions, states and the lookup of a name."""
