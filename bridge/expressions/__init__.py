"""The language of conditions, values and templates, pure. It knows nothing of events and plans."""
