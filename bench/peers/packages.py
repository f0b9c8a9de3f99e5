"""Packages of the peers, of exact versions, kept apart from Tenuto's own environment in a cache of the benchmarks.

They are not dependencies of Tenuto, not even for development: only a measurement beside peers fetches them. The cache
is `$TENUTO_BENCH_CACHE`, else `tenuto-bench` in the user's cache folder. A download is put in place by one rename,
so an interrupted or concurrent run finds all of it or none.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from bench.proc import BenchError

__all__ = ["REDIS_CLIENT", "SOCKET_IO", "cache", "is_fetched", "node_packages", "python_packages"]

SOCKET_IO = ("socket.io@4.8.4",)
REDIS_CLIENT = ("redis==8.1.0", "hiredis==3.5.0", "uvloop==0.23.0")

_FETCH_S = 180.0


def node_packages(*wanted: str) -> Path:
    """Return a folder with a `node_modules` that holds `wanted`. Raises `BenchError` if they cannot be fetched."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        raise BenchError("Node.js with npm is missing (Debian: apt-get install nodejs npm)")
    options = ["--no-package-lock", "--no-fund", "--no-audit", "--omit=dev", "--loglevel=error"]
    return _fetched(f"node {' '.join(wanted)}", lambda folder: [npm, "install", "--prefix", folder, *options, *wanted])


def python_packages(*wanted: str) -> Path:
    """Return a folder for `PYTHONPATH` that holds `wanted`. Raises `BenchError` if they cannot be fetched."""
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-warn-script-location",
    ]
    name = f"{sys.implementation.cache_tag} {' '.join(wanted)}"
    return _fetched(name, lambda folder: [*pip, "--target", folder, *wanted])


def is_fetched(*wanted: str) -> bool:
    """Return whether `wanted` are in the cache, so that no download is needed."""
    return any(path.name.endswith("_".join(wanted)) for path in cache().glob("*"))


def cache() -> Path:
    """Return the cache folder."""
    if own := os.environ.get("TENUTO_BENCH_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tenuto-bench"


def _fetched(name: str, command: Callable[[str], list[str]]) -> Path:
    path = cache() / name.replace(" ", "_").replace("/", "_")
    if path.is_dir():
        return path
    cache().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache(), prefix=".fetching-") as scratch:
        folder = Path(scratch) / "whole"
        folder.mkdir()
        try:
            result = subprocess.run(command(str(folder)), capture_output=True, timeout=_FETCH_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BenchError(f"could not fetch {name}: {error}") from error
        if result.returncode:
            raise BenchError(
                f"could not fetch {name}: {(result.stderr + result.stdout)[-1500:].decode(errors='replace')}"
            )
        with contextlib.suppress(OSError):  # another run was faster: its download is as good
            folder.rename(path)
    if not path.is_dir():
        raise BenchError(f"could not put {name} into {path}")
    return path
