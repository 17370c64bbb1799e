"""Every precondition of source, targets, enrichment and configuration, each finding with what mends it."""
