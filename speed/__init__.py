"""Measurements for benchmark.py."""
