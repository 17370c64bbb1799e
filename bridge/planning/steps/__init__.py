"""The steps of a pipeline, one module each: what is written, its plain value, what runs, what is told of it."""
