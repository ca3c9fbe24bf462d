"""A trained bundle and held-out good images to thresholds and evidence (before hop 1)."""
