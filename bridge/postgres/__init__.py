"""What is said to Postgres, source and target: the product's own ground, not an adapter."""
