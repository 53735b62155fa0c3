"""What a batch, a loss, a metric and a preview are, for each kind of work."""
