"""Everything that is sent to Postgres, source and target."""
