"""Benchmarks: `python -m bench`. `bench/__main__.py` lists the measurements, `docs/benchmarks.md` the method."""
