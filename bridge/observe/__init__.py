"""What the bridge tells about itself: metrics, logs, health, the admin server and its page."""
