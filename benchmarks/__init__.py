"""Measurements, not tests: `python -m benchmarks` takes all, `python -m benchmarks.journal` and the like one part."""
