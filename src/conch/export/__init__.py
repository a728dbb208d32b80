"""Makes repository entries out of models of PyTorch, scikit-learn and Transformers, and checks that they agree."""
