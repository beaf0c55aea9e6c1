"""Benchmarks: each prints ratios from one run, and none is a timed test."""
