"""What a person asks for, beside the stream: dead letters, replay, recover, prune."""
