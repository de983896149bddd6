"""YAML presets, <dataset>/<model>.yaml."""
