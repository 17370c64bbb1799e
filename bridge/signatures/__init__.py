"""How senders of webhooks sign their requests, one module per scheme."""
