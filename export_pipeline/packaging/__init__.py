"""The package that people download: what is in it, its bytes, and whether they are still the same."""
