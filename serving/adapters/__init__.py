"""The ports' real forms: one file for each thing outside this process."""
