"""Benchmarks: each prints ratios from one run, and none is a timed test."""

import os

# ONNX Runtime's Linux builds report to their maker unless told not to; it is read when they are imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
