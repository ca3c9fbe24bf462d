"""Bundles over versions of this program: what was whole when it was written stays whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from contract.bundle import MANIFEST, digest_of, open_bundle
from contract.errors import BundleError
from tests.bundles import draw_part
from tests.graphs import write_bundle


def make_old(folder: Path) -> Path:
    """A bundle as it was written before the manifest knew of FP16."""
    write_bundle(folder, [draw_part(number) for number in range(6)])
    path = folder / MANIFEST
    content = json.loads(path.read_text())
    del content["golden"]["tolerance_fp16"], content["digest"]
    path.write_text(json.dumps({**content, "digest": digest_of(content)}))
    return folder


def test_a_bundle_of_before_a_field_was_added_opens(tmp_path: Path) -> None:
    assert open_bundle(make_old(tmp_path)).manifest.golden.tolerance_fp16 is None


def test_an_old_bundle_that_was_changed_is_refused(tmp_path: Path) -> None:
    path = make_old(tmp_path) / MANIFEST
    content = json.loads(path.read_text())
    content["golden"]["tolerance"] = 0.09
    path.write_text(json.dumps(content))
    with pytest.raises(BundleError, match="digest differ"):
        open_bundle(tmp_path)
