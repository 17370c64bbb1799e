"""Compare source and target: expected rows against present rows. run.py describes the order of reads."""
