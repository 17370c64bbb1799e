"""The commands of an operator, beside the stream: dead letters, replay, recover, prune; and the daemon's upkeep."""
