"""In-memory twins of the ports: what the tests run on, and what a single gateway may run on."""
