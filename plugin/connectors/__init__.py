"""Ways to a line controller, one module each (hop 10)."""
