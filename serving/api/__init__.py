"""The edge: HTTP in, one call of the pipeline, HTTP out."""
