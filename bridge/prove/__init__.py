"""Compare source and target: what should be where, against what is there. See run.py for the order of reads."""
