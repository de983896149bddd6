"""Width: how wide a stored row is. One file a method."""
