"""From the delivery table to sinks: claim, send, settle. The streams never wait for it."""
