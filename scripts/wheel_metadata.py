"""Write the repository's address into the metadata of the package: a metadata hook of hatchling.

Layer: scripts. `pyproject.toml` names it. An index of packages shows the README without the files beside it, so its
links and pictures there need the address of the released version.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?://|#)([^)]+)\)")


class WheelMetadata(MetadataHookInterface):
    """Set the README and the URLs, with the address in TENUTO_REPOSITORY, such as https://github.com/owner/tenuto.

    Without that variable, as in an installation from a clone, the package names no address.
    """

    def update(self, metadata: dict[str, Any]) -> None:
        """Add `readme` and `urls`. Raises ValueError for an address that is not one."""
        root = Path(self.root)
        text = (root / "README.md").read_text(encoding="utf-8")
        address = os.environ.get("TENUTO_REPOSITORY", "").rstrip("/")
        metadata["urls"] = {}
        if address:
            if not re.fullmatch(r"https://[\w.-]+/\S+", address):
                raise ValueError(f"TENUTO_REPOSITORY must be like https://github.com/owner/tenuto, got {address!r}")
            (version,) = re.findall(r'"(.+)"', (root / "tenuto" / "_version.py").read_text(encoding="utf-8"))
            places = {"": f"{address}/blob/v{version}", "!": f"{address}/raw/v{version}"}
            text = _LINK.sub(lambda found: f"{found[1]}[{found[2]}]({places[found[1]]}/{found[3]})", text)
            metadata["urls"] = {
                "Repository": address,
                "Documentation": f"{address}/tree/v{version}/docs",
                "Changelog": f"{address}/blob/v{version}/CHANGELOG.md",
                "Issues": f"{address}/issues",
            }
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
