"""Everything that decides and nothing that waits: no socket, no clock, no database, so that a model can drive it."""
