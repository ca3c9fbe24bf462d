"""Which product types a data folder holds, for a model that is trained for several (before hop 1)."""

from __future__ import annotations

from pathlib import Path

from contract.dataset import images_in
from contract.errors import DatasetError

LAYOUT = "expected a folder for each product type, each laid out as a data folder is: {root}/TYPE/train/good"


def type_folders(root: Path) -> list[Path]:
    """The folders of ``root``, each the data folder of the type that it is named after, sorted by name.

    Hidden ones do not count. Raises DatasetError where ``root`` is itself the data folder of one type.
    """
    layout = LAYOUT.format(root=root)
    if not root.is_dir():
        raise DatasetError(f"{root}: no such folder; {layout}")
    if (root / "train").is_dir() or images_in(root):
        raise DatasetError(f"{root}: holds the images of one product type, and --conditional learns several; {layout}")
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(folders) < 2:
        found = f"holds {folders[0].name} alone" if folders else "holds no folder"
        raise DatasetError(f"{root}: {found}, and --conditional learns two product types or more; {layout}")
    return folders
