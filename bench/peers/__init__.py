"""Runners of `bench.training` and `bench.data`, each started by the Python of the library it runs."""
