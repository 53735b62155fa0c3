"""Reading, checking, ordering and caching of training data."""
