"""The inspector's pages and the HTTP API (hops 11 and 12)."""
