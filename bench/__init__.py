"""Benchmarks: one script a question, results as JSON with the environment."""
