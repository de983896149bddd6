"""Row stores: where the rows of every physical table live. One file a backend."""
