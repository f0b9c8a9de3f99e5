"""Put the built browser client into the wheel: a build hook of hatchling.

Layer: scripts. `pyproject.toml` names it.

After `scripts/build_web` the wheel has the files of `dist/web` under `tenuto/web`, as the npm package has them.
Without it, for example in an installation from a git clone, the wheel has the sources there. The hub serves either.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class WheelFiles(BuildHookInterface[Any]):
    """Choose the files of the browser client. An editable installation uses those of the clone."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the files to the archive. Raise ValueError if the built ones are older than their sources."""
        source, built = Path(self.root, "tenuto", "web"), Path(self.root, "dist", "web")
        if version == "editable":
            return
        sources = [
            path for path in source.rglob("*") if path.is_file() and "demo" not in path.relative_to(source).parts
        ]
        skills = built / "skills"  # for npm: the wheel has them in `tenuto/.agents`
        files = [path for path in built.rglob("*") if path.is_file() and not path.is_relative_to(skills)]
        changed = max(path.stat().st_mtime for path in sources)
        if files and min(path.stat().st_mtime for path in files) < changed:
            raise ValueError("dist/web is older than tenuto/web: run make web, or remove dist/web")
        if self.target_name == "wheel":
            folder, chosen = (built, files) if files else (source, sources)
            build_data["force_include"].update(
                {str(path): f"tenuto/web/{path.relative_to(folder)}" for path in sorted(chosen)}
            )
        else:
            build_data["force_include"].update(
                {str(path): f"dist/web/{path.relative_to(built)}" for path in sorted(files)}
            )
