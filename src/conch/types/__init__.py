"""VALUES: data types, tensors, requests, responses and errors. Imports nothing else of ours."""
