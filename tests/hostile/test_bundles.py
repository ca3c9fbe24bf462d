"""Bundles that were damaged, changed or forged: refused when opened, with a sentence that says what and where."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.bundle import MANIFEST, MAX_MANIFEST_BYTES, Manifest, file_entry, open_bundle, write_manifest
from contract.errors import BundleError
from edge_runtime.engines.golden import golden_tiles
from flawline import main
from tests.bundles import draw_part
from tests.graphs import write_bundle


@pytest.fixture(scope="module")
def _original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original") / "bundle"
    write_bundle(folder, [draw_part(number) for number in range(6)])
    return folder


@pytest.fixture
def folder(_original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(_original, tmp_path / "bundle"))


def forge(folder: Path, **change: Any) -> None:
    """Rewrite the manifest with a digest that is right: what a careful forger would do."""
    manifest = open_bundle(folder).manifest
    raw = manifest.model_dump(mode="json")
    for path, value in change.items():
        at = raw
        *steps, last = path.split("__")
        for step in steps:
            at = at[step]
        at[last] = value
    (folder / MANIFEST).write_text(json.dumps(raw))
    with suppress(ValueError):  # a manifest that no model takes stays as it was written above
        write_manifest(folder, Manifest.model_validate(raw))


def test_untouched_bundle_opens(folder: Path) -> None:
    assert open_bundle(folder).manifest.name == "part"


@pytest.mark.parametrize("name", [MANIFEST, "model.fp32.onnx", "golden.npy", "data.json"])
def test_one_byte_changed_is_found(folder: Path, name: str) -> None:
    original = (folder / name).read_bytes()
    rng = np.random.default_rng(0)
    for at in {0, len(original) - 1, *rng.integers(0, len(original), 40).tolist()}:
        data = bytearray(original)
        data[at] ^= 1 << int(rng.integers(0, 8))
        (folder / name).write_bytes(bytes(data))
        try:
            manifest = open_bundle(folder).manifest
        except BundleError as error:
            assert str(folder) in str(error)
        else:  # only white space between the manifest's values may differ without a difference
            assert name == MANIFEST and json.loads(bytes(data)) == json.loads(original), (name, at)
            assert manifest.digest == manifest.computed_digest()
    (folder / name).write_bytes(original)
    open_bundle(folder)


@pytest.mark.parametrize("name", ["model.fp32.onnx", "golden.npy", "data.json"])
@pytest.mark.parametrize("how", ["missing", "empty", "longer", "shorter", "folder", "fifo"])
def test_files_that_are_not_there_or_not_whole(folder: Path, name: str, how: str) -> None:
    path = folder / name
    data = path.read_bytes()
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how == "fifo":
        os.mkfifo(path)  # opening it to read would wait for ever
    elif how != "missing":
        path.write_bytes({"empty": b"", "longer": data + b"\0", "shorter": data[:-1]}[how])
    with pytest.raises(BundleError, match=name):
        open_bundle(folder)


@pytest.mark.parametrize(
    "path", ["../secret", "/etc/passwd", "a/../../secret", "..\\secret", "C:\\secret", "C:secret", "./../bundle2/x"]
)
def test_paths_that_leave_the_bundle(folder: Path, path: str) -> None:
    (folder.parent / "secret").write_text("x")
    forge(folder, files__data__path=path)
    with pytest.raises(BundleError, match="leaves the bundle"):
        open_bundle(folder)


def test_links_out_of_the_bundle(folder: Path) -> None:
    outside = folder.parent / "outside"
    shutil.copytree(folder, outside)
    (folder / "data.json").unlink()
    (folder / "data.json").symlink_to(outside / "data.json")
    with pytest.raises(BundleError, match="leaves the bundle through a link"):
        open_bundle(folder)


def test_linked_folder_inside(folder: Path) -> None:
    outside = folder.parent / "outside"
    shutil.copytree(folder, outside)
    (folder / "sub").symlink_to(outside)
    forge(folder, files__data__path="sub/data.json")
    with pytest.raises(BundleError, match="leaves the bundle through a link"):
        open_bundle(folder)


def test_link_to_a_file_of_the_bundle_is_no_regular_file(folder: Path) -> None:
    (folder / "data.json").rename(folder / "real.json")
    (folder / "data.json").symlink_to("real.json")
    with pytest.raises(BundleError, match="not a regular file"):
        open_bundle(folder)


@pytest.mark.parametrize("version", ["flawline.bundle/2", "flawline.bundle/0", "", None, 1, {"a": 1}, "x" * 10_000])
def test_unknown_format(folder: Path, version: Any) -> None:
    forge(folder, format=version)
    with pytest.raises(BundleError, match=r"this version reads 'flawline\.bundle/1'") as caught:
        open_bundle(folder)
    assert len(str(caught.value)) < 400


def test_huge_manifest_is_not_read(folder: Path) -> None:
    with (folder / MANIFEST).open("r+b") as file:
        file.truncate(MAX_MANIFEST_BYTES + 1)
    with pytest.raises(BundleError, match="not a bundle's manifest"):
        open_bundle(folder)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 200_000, b'{"format": "flawline.bundle/1"}', b"NaN"]
)
def test_manifest_that_is_none(folder: Path, content: bytes) -> None:
    (folder / MANIFEST).write_bytes(content)
    with pytest.raises(BundleError, match=r"bundle\.json"):
        open_bundle(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"surplus": 1},
        {"recipe__tile_hw": [100_000, 64]},
        {"recipe__channels": 2},
        {"files__data__size": -1},
        {"files__data__size": 1 << 60},
        {"files__data__sha256": "zz"},
        {"golden__scores": "many"},
        {"model__map_hw": [1]},
    ],
    ids=str,
)
def test_values_out_of_range(folder: Path, change: dict[str, Any]) -> None:
    forge(folder, **change)
    with pytest.raises(BundleError):
        open_bundle(folder)


@pytest.mark.parametrize("role", ["graph.fp32", "data", "golden"])
def test_missing_role(folder: Path, role: str) -> None:
    manifest = open_bundle(folder).manifest
    files = {name: entry for name, entry in manifest.files.items() if name != role}
    write_manifest(folder, manifest.model_copy(update={"files": files}))
    with pytest.raises(BundleError, match=f"no file of role '{role}'"):
        open_bundle(folder)


def test_golden_images_that_hold_a_pickle(folder: Path) -> None:
    np.save(folder / "golden.npy", np.array([{"a": 1}], object), allow_pickle=True)
    manifest = open_manifest_again(folder)
    with pytest.raises(BundleError, match="golden images cannot be read"):
        golden_tiles(manifest)


@pytest.mark.parametrize("shape", [(0, 64, 64, 1), (4, 32, 32, 1), (4, 64, 64), (4, 64, 64, 3)])
def test_golden_images_of_another_shape(folder: Path, shape: tuple[int, ...]) -> None:
    np.save(folder / "golden.npy", np.zeros(shape, np.uint8))
    with pytest.raises(BundleError, match="expected uint8"):
        golden_tiles(open_manifest_again(folder))


def open_manifest_again(folder: Path) -> Any:
    """Open the bundle after its golden file was replaced and the manifest brought up to date."""
    raw = json.loads((folder / MANIFEST).read_bytes())
    manifest = Manifest.model_validate(raw)
    files = {**manifest.files, "golden": file_entry(folder, "golden.npy")}
    write_manifest(folder, manifest.model_copy(update={"files": files}))
    return open_bundle(folder)


def test_commands_say_it_in_a_sentence(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "golden.npy").write_bytes(b"")
    for words in (
        ["inspect", str(folder), "x.png"],
        ["calibrate", "thresholds", str(folder), "--data", str(tmp_path)],
        ["calibrate", "evaluate", str(folder), "--data", str(tmp_path), "--json", str(tmp_path / "j")],
    ):
        assert main(words) == 2
        shown = capsys.readouterr()
        assert "golden.npy" in shown.err and "Traceback" not in shown.err + shown.out
