"""Good images to a bundle, on the engineer's machine (before hop 1)."""
