"""Certificates for servers that tests start.

Layer: tests.
"""

from __future__ import annotations

import subprocess
from pathlib import Path


def make_certificate(folder: Path, name: str = "certificate", *, host: str = "DNS:localhost") -> Path:
    """Return the file of a certificate for `host` that signs itself, with its key beside it in `key.pem`."""
    file = folder / f"{name}.pem"
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", folder / "key.pem"]
    about = ["-days", "1", "-subj", f"/CN={name}", "-addext", f"subjectAltName={host}"]
    command = ["openssl", "req", "-x509", *kind, *about, "-out", file]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return file
