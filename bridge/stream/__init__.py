"""The loop of one stream: from the slot's bytes to the target's commit."""
