"""Scores of generated pictures, and the report of a run."""
