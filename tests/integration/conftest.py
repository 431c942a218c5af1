"""Nothing of its own: it makes this folder's helpers importable."""
