"""Check the files in a wheel and in a source archive, and print their sizes: check_archives.py WHEEL SDIST.

Layer: scripts. `dist` runs it. The expected files are those that git knows, so a file that a build adds by
accident, or leaves out, fails.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

CLONE = Path(__file__).parents[1]
# A larger wheel has a file that came in by accident, or much growth (decision 0044).
LIMIT_BYTES = 1_500_000
METADATA = {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE", "sboms/sbom.cdx.json"}
REQUIRED = {
    "tenuto/py.typed",
    "tenuto/web/client.js",
    "tenuto/web/demo/index.html",
    "tenuto/.agents/skills/tenuto/SKILL.md",
    "tenuto/cli/starter/main.py.txt",
    "tenuto/demo/answers/1-reload.md",
}


def tracked(*folders: str) -> set[str]:
    """Return the files below `folders` that git tracks or would add."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *folders]
    listed = subprocess.run(command, cwd=CLONE, capture_output=True, text=True, check=True).stdout
    return {name for name in listed.split("\0") if name and (CLONE / name).is_file()}


def built() -> set[str]:
    """Return the files of the built browser client that the archives have, relative to their folder."""
    folder = CLONE / "dist" / "web"
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return {name for name in files if not name.startswith("skills/")}


def wheel_files() -> set[str]:
    """Return the paths that the wheel must hold."""
    files = tracked("tenuto")
    if built():
        files = {name for name in files if not name.startswith("tenuto/web/") or name.startswith("tenuto/web/demo/")}
        files |= {f"tenuto/web/{name}" for name in built()}
    return files


def check(archive: str, found: set[str], expected: set[str]) -> None:
    """Raise AssertionError unless the archive has exactly the expected files."""
    assert found == expected, (
        f"{archive} lacks {sorted(expected - found)} and has in addition {sorted(found - expected)}"
    )


def main(wheel: Path, sdist: Path) -> None:
    """Raise AssertionError if an archive has other files than expected, or if the wheel is too large."""
    name = "-".join(wheel.name.split("-")[:2])
    inside = {entry for entry in zipfile.ZipFile(wheel).namelist() if not entry.endswith("/")}
    files = wheel_files()
    assert files >= REQUIRED, sorted(REQUIRED - files)
    check(wheel.name, inside, files | {f"{name}.dist-info/{entry}" for entry in METADATA})

    with tarfile.open(sdist) as archive:
        inside = {entry.name.removeprefix(f"{name}/") for entry in archive.getmembers() if entry.isfile()}
    hooks = tracked("scripts/wheel_files.py", "scripts/wheel_metadata.py")
    sources = tracked("tenuto", "docs", "README.md", "LICENSE", "CHANGELOG.md", "pyproject.toml", ".gitignore")
    check(sdist.name, inside, sources | {f"dist/web/{name}" for name in built()} | hooks | {"PKG-INFO"})

    wheel_bytes = wheel.stat().st_size
    print(f"{wheel.name}: {len(files)} files, {wheel_bytes:,} bytes; {sdist.name}: {sdist.stat().st_size:,} bytes")
    assert wheel_bytes <= LIMIT_BYTES, f"the wheel has {wheel_bytes:,} bytes, at most {LIMIT_BYTES:,} are expected"


main(*map(Path, sys.argv[1:]))
