"""One engine for every task: the loop, its optimizer, checkpoints and log."""
