"""Camera to verdict to wire, on the box beside the line (hops 1 to 6)."""
