"""Data sources, the columnar store and the loader."""
