"""What two folders must agree on: bundle, event, recipe, decision and configuration (every hop uses it)."""
