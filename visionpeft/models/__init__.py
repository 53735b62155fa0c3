"""Base models: loading, families, and the semantic names of what can be tuned."""
