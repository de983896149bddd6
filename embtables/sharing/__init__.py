"""Sharing: which rows an id reads. One file a method."""
