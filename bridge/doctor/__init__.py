"""Checks of every precondition of source, targets, enrichment and configuration, each finding with its fix."""
