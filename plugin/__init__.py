"""Wire to store, line outputs and review pages, on the host (hops 7 to 12)."""
