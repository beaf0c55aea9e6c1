"""NVIDIA Triton, run by us: found, given the backend it lacks, started, watched and stopped.

A Triton that somebody else runs needs nothing from here; `serving.adapters.triton` talks to both alike.
"""
