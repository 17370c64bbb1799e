"""From batch to one target transaction: the loop that performs what the protocol asks for."""
