"""Packages of the peers, of exact versions, kept apart from Tenuto's own environment in a cache of the benchmarks.

They are not dependencies of Tenuto, not even for development: only a measurement beside peers fetches them. The cache
is `$TENUTO_BENCH_CACHE`, else `tenuto-bench` in the user's cache folder. A download is put in place by one rename,
so an interrupted or concurrent run finds all of it or none.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.proc import BenchError

__all__ = ["REDIS_CLIENT", "cache", "is_fetched", "python_packages"]

REDIS_CLIENT = ("redis==8.1.0", "hiredis==3.5.0", "uvloop==0.23.0")

_FETCH_S = 180.0


def python_packages(*wanted: str) -> Path:
    """Return a folder for `PYTHONPATH` that holds `wanted`. Raises `BenchError` if they cannot be fetched."""
    name = f"{sys.implementation.cache_tag} {' '.join(wanted)}".replace(" ", "_").replace("/", "_")
    path = cache() / name
    if path.is_dir():
        return path
    options = ["--quiet", "--disable-pip-version-check", "--no-warn-script-location"]
    cache().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache(), prefix=".fetching-") as scratch:
        folder = Path(scratch) / "whole"
        folder.mkdir()
        command = [sys.executable, "-m", "pip", "install", *options, "--target", str(folder), *wanted]
        try:
            result = subprocess.run(command, capture_output=True, timeout=_FETCH_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BenchError(f"could not fetch {name}: {error}") from error
        if result.returncode:
            output = (result.stderr + result.stdout)[-1500:].decode(errors="replace")
            raise BenchError(f"could not fetch {name}: {output}")
        with contextlib.suppress(OSError):  # another run was faster: its download is as good
            folder.rename(path)
    if not path.is_dir():
        raise BenchError(f"could not put {name} into {path}")
    return path


def is_fetched(*wanted: str) -> bool:
    """Return whether `wanted` are in the cache, so that no download is needed."""
    return any(path.name.endswith("_".join(wanted)) for path in cache().glob("*"))


def cache() -> Path:
    """Return the cache folder."""
    if own := os.environ.get("TENUTO_BENCH_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tenuto-bench"
