"""Long tests of the adapters: React in a browser, and servers that are killed.

Layer: tests. `scripts/test_interop` runs them, with the releases that it installs.
"""
