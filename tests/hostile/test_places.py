"""Files of masks and levels that are damaged or forged: refused with a sentence, before memory is taken for them."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from calibration.calibrate import Rates
from calibration.places import Where
from contract.bundle import Bundle, file_entry, open_bundle, write_manifest
from contract.errors import BundleError, ImageError
from contract.places import locate, read_array
from contract.recipe import Places, Zone
from tests.bundles import calibrated, draw_part
from tests.graphs import write_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_bundle(tmp_path / "bundle", [draw_part(number) for number in range(6)])


def npy(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=True)
    return buffer.getvalue()


def header(shape: str, descr: str = "<f4", length: int | None = None) -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".ljust(length or 100).encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def with_files(bundle: Bundle, **files: bytes) -> Bundle:
    entries = {}
    for name, data in files.items():
        (bundle.root / f"{name}.npy").write_bytes(data)
        entries[name.replace("_", ".")] = file_entry(bundle.root, f"{name}.npy")
    manifest = bundle.manifest
    write_manifest(bundle.root, manifest.model_copy(update={"files": {**manifest.files, **entries}}))
    return open_bundle(bundle.root)


GOOD = np.stack([np.zeros((4, 4)), np.ones((4, 4))]).astype(np.float32)


def changed(row: int, value: float) -> np.ndarray:
    level = GOOD.copy()
    level[row, 1, 1] = value
    return level


LEVELS = {
    "nan": npy(changed(0, np.nan)),
    "infinite": npy(changed(1, np.inf)),
    "no spread": npy(changed(1, 0)),
    "another shape": npy(GOOD[0]),
    "three layers": npy(np.ones((3, 4, 4), np.float32)),
    "too many places": npy(np.ones((2, 65, 65), np.float32)),
    "doubles": npy(GOOD.astype(np.float64)),
    "columns first": npy(np.asfortranarray(GOOD)),
    "empty": npy(np.ones((2, 0, 4), np.float32)),
    "objects": npy(np.array([{"a": 1}], dtype=object)),
    "torn": npy(GOOD)[:-5],
    "longer": npy(GOOD) + b"x",
    "no array": b"torn",
    "nothing": b"",
    "a terabyte": header("(2, 400000, 400000)"),
    "negative": header("(2, -4, -4)"),
    "a huge header": header("(2, 4, 4)", length=60_000),
    "code": header("__import__('os').abort()"),
    "another version": b"\x93NUMPY\x09\x00" + npy(GOOD)[8:],
}


@pytest.mark.parametrize("name", LEVELS)
def test_levels_that_cannot_be(name: str, bundle: Bundle) -> None:
    opened = with_files(bundle, level_0=LEVELS[name])
    with pytest.raises(BundleError, match=r"level_0\.npy"):
        locate(opened)


def test_a_level_that_can_be(bundle: Bundle) -> None:
    found = locate(with_files(bundle, level_0=npy(GOOD)))
    assert found is not None and found.levels["main"].middle.shape == (4, 4)


def test_masks_that_cannot_be(bundle: Bundle) -> None:
    keep, fill = np.ones((64, 64), np.uint8), np.zeros((64, 64), np.uint8)
    for mask, filled, said in (
        (np.zeros_like(keep), fill, "some of 1"),
        (np.full_like(keep, 7), fill, "expected 1 where"),
        (keep[:32], fill, r"expected uint8 \[64, 64\]"),
        (keep, fill[:, :32], r"expected uint8 \[64, 64\]"),
    ):
        with pytest.raises(BundleError, match=said):
            locate(with_files(bundle, mask_0=npy(mask), fill_0=npy(filled)))
    alone = with_files(bundle, mask_0=npy(keep))
    files = {role: entry for role, entry in alone.manifest.files.items() if role != "fill.0"}
    write_manifest(bundle.root, alone.manifest.model_copy(update={"files": files}))
    with pytest.raises(BundleError, match=r"no file of role 'fill\.0'"):
        locate(open_bundle(bundle.root))


def test_files_of_no_view(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match=r"'level\.7'.*belong to no view"):
        locate(with_files(bundle, level_7=npy(GOOD)))


def test_places_that_do_not_fit_the_bundle(bundle: Bundle) -> None:
    for places, said in (
        (Places(zones=[Zone(name="z", view="top", box=(0, 0, 1, 1))], top_k=1), "view 'top'"),
        (Places(zones=[Zone(name="z", box=(0, 0, 1, 1), smallest_px=1, verdict="REJECT")]), "not made of the map"),
    ):
        write_manifest(bundle.root, bundle.manifest.model_copy(update={"places": places}))
        with pytest.raises(BundleError, match=said):
            locate(open_bundle(bundle.root))


def test_memory_is_taken_for_what_a_file_holds_only(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    path.write_bytes(header("(100000000,)", "|u1"))
    with pytest.raises(BundleError, match="0 bytes of data"):
        read_array(path, np.dtype(np.uint8), (None,))


def _png(width: int, height: int) -> bytes:
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


@pytest.mark.parametrize(
    "data", [b"", b"torn", _png(100_000, 100_000), _png(80, 80)], ids=["empty", "torn", "bomb", "cut"]
)
def test_mask_pictures_that_are_none(data: bytes, tmp_path: Path) -> None:
    import cv2

    from contract.dataset import sha256_of_image

    good = tmp_path / "data" / "train" / "good"
    good.mkdir(parents=True)
    for number in range(40):
        cv2.imwrite(str(good / f"p{number:02d}.png"), draw_part(number))
    hashes = [sha256_of_image(path) for path in sorted(good.iterdir())[:10]]
    write_bundle(tmp_path / "b", [draw_part(number) for number in range(10)], fit=hashes)
    picture = tmp_path / "mask.png"
    picture.write_bytes(data)
    with pytest.raises(ImageError, match=r"mask\.png"):
        calibrated(
            tmp_path / "b", tmp_path / "data", Rates(0.05), "onnxruntime", where=Where(masks=(f"main={picture}",))
        )
