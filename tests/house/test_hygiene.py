"""The house's own rules that no linter knows: sentences at the top of modules, no pickles, no large files."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("contract", "training", "calibration", "edge_runtime", "plugin")
MODULES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_module_opens_with_a_sentence_and_opens_no_pickle(path: Path) -> None:
    tree = ast.parse(path.read_text())
    docstring = ast.get_docstring(tree)
    assert docstring, "a sentence that says what the module is"
    assert docstring.splitlines()[0].rstrip().endswith((".", ":")), docstring.splitlines()[0]
    if path.relative_to(ROOT).parts[0] != "training":
        imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not imported & {"pickle", "marshal", "shelve", "joblib", "dill"}


def test_nothing_large_is_committed() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    paths = [ROOT / name.decode() for name in listed.stdout.split(b"\0") if name]
    assert [str(path) for path in paths if path.is_file() and path.stat().st_size > 1_500_000] == []
