"""`tenuto new`: write a small app with a chat.

Layer: cli. The files of the app are in `starter`, as text, so that no tool takes them for modules of Tenuto.
"""

from __future__ import annotations

import re
from pathlib import Path

from tenuto.core.errors import LocalError, shown

STARTER = Path(__file__).with_name("starter")


def write_app(folder: Path) -> list[str]:
    """Write the app into `folder`, which is made if it does not exist, and return the names of its files.

    Raises LocalError for a folder that is not empty, and for a name that cannot be the app's.
    """
    name = folder.resolve().name
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,62}", name):  # it also names the image
        raise LocalError(f"NAME must be made of lower-case letters, digits, - and _, got {shown(name)}; try my-chat")
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise LocalError(f"folder {folder} is not empty; give the name of a new one")
    files = {path.stem.replace("dot-", "."): path.read_text(encoding="utf-8") for path in sorted(STARTER.iterdir())}
    for file, text in files.items():
        (folder / file).write_text(text.replace("{name}", name), encoding="utf-8")
    return list(files)
