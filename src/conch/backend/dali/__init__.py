"""DALI pipelines, each instance in a worker process of its own. Imports nothing: workers load parts of it."""
