"""Destinations that are no Postgres table: one small module a vendor, each a model, a payload and a send."""
