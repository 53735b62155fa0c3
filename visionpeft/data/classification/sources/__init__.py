"""What lists pictures and their labels, one kind of source a file; the table of them is in ``../open.py``."""
