"""The command `tenuto`.

Layer: cli.
"""

from importlib.util import find_spec

if find_spec("uvicorn") is None:
    raise SystemExit("Error: tenuto needs the package uvicorn; install Tenuto with [serve], as its README shows")
