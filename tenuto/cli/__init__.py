"""The command `tenuto`.

Layer: cli.
"""
