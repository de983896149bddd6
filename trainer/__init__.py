"""Configuration, training loop, metrics and the command line."""
