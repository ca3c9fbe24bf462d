"""What `flawline doctor` looks at, a module a topic (before hop 1)."""
