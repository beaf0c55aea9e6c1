"""Frozen values that the journey passes along; they know nothing of HTTP, Triton, Ray or SQL."""
