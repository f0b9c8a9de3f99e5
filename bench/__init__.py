"""Benchmarks: `python -m bench`. What is measured, and against which limit, stands in `bench/__main__.py`."""
