"""Precision: which bits hold a stored row. One file a method."""
