"""Destinations that are not Postgres tables: one module per vendor, with a model, a payload and a send."""
