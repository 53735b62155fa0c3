"""Precision, attention backends and memory of this machine."""
