"""What events turn into, pure: contracts, steps, branches, mapping, order."""
