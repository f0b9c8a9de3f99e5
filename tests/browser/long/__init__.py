"""Tests of the browser that take longer than `make test` may: `scripts/test_long` runs them.

Layer: tests.
"""
