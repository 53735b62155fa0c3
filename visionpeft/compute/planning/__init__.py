"""What a step would take, told from shapes alone: no weights are read, and no GPU is asked."""
