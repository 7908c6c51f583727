"""Measurements, each with one figure that the README promises: `python -m benchmarks.<name>`. Not tests."""
