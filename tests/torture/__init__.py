"""`python -m tests.torture`: the rig, the load on it, the faults, and the verdict."""
