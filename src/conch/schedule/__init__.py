"""WHAT RUNS NEXT: how requests wait, meet in batches and reach a free instance."""
