"""Parts that inspectors judged, with pictures and where each is from, as data sets for training (after hop 12).

Truth is what an inspector's decision that stands says. Whatever nobody has settled is left out and counted.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from plugin.errors import ConfigError
from plugin.finder import Filter, Finder
from plugin.layouts import LAYOUTS, NOTES, Layout, Picture, class_of, name_of, side_of, text_of
from plugin.models import iso

FORMAT = "flawline.dataset/1"
PAGE = 200
MOST = 100_000
"""Pictures of one export: its lists are made in memory."""

CODECS = ("png", "jpeg")


class Read(Protocol):
    """The bytes of a picture or map by its hash; None where they were removed. Raises OSError."""

    def __call__(self, sha256: str, /) -> bytes | None: ...


class Wanted(NamedTuple):
    """Which parts, as what; the share of good ones kept for tests; ``masks``: also the machine's maps as masks."""

    kind: str
    parts: Filter = Filter()
    test_share: float = 0.2
    masks: bool = False
    classes: tuple[str, ...] = ()


def files(
    finder: Finder, read: Read, wanted: Wanted, picture_done: Callable[[], object] = lambda: None
) -> Iterator[tuple[str, bytes]]:
    """Relative path and bytes of each file of a data set; the manifest, which names every file and its hash, last."""
    views = finder.settled_views(wanted.parts)
    layout = LAYOUTS[wanted.kind](views, wanted.masks, wanted.classes)
    listed: list[dict[str, Any]] = []
    counts: Counter[str] = Counter()
    left_out = Counter(finder.unsettled(wanted.parts))
    for pictures in _parts(finder, read, wanted, layout, left_out):
        counts[f"{pictures[0].label} parts"] += 1
        for picture in pictures:
            written = list(layout.add(picture))
            listed.append(_entry(picture, written))
            counts[f"{picture.split} pictures"] += 1
            yield from written
            picture_done()
        if len(listed) > MOST:
            raise ConfigError(f"more than {MOST} pictures; export a shorter time")
    lists = list(layout.end())
    yield from lists
    about = {
        "format": FORMAT,
        "kind": wanted.kind,
        "made": iso(time.time_ns()),
        "notes": [*NOTES, *layout.notes],
        "filters": {name: str(value) for name, value in wanted.parts._asdict().items() if value is not None},
        "test_share": wanted.test_share,
        "counts": counts,
        "left_out": +left_out,
        "lists": {path: _sha256(data) for path, data in lists},
        "files": listed,
    }
    yield "manifest.json", text_of(about)


def write_folder(found: Iterable[tuple[str, bytes]], folder: Path) -> dict[str, Any]:
    """Write a data set into a folder that is empty or not there yet, whole or not at all; returns its manifest.

    What is under way lies beside it under a hidden name that ends with ``.draft``.
    """
    draft = folder.with_name(f".{folder.name}.{os.getpid()}.draft")
    data = b"{}"
    try:
        if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            raise ConfigError(f"{folder}: is there already and not empty; nothing was written")
        draft.mkdir(parents=True)
        try:
            for path, data in found:
                file = draft / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(data)
            draft.rename(folder)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be exported ({error.strerror or error}); nothing was written") from error
    manifest: dict[str, Any] = json.loads(data)
    return manifest


def zipped(found: Iterable[tuple[str, bytes]]) -> Iterator[bytes]:
    """The same as a zip archive, piece by piece; pictures are not compressed again. Cut off it is no archive."""
    sink = _Sink()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
        for path, data in found:
            archive.writestr(zipfile.ZipInfo(path), data)
            yield sink.taken()
    yield sink.taken()


class _Sink(io.RawIOBase):
    """Takes what a zip archive writes and gives it on; nothing can be sought in it."""

    def __init__(self) -> None:
        self._data = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._data += data
        return len(data)

    def taken(self) -> bytes:
        data = bytes(self._data)
        self._data.clear()
        return data


def _parts(
    finder: Finder, read: Read, wanted: Wanted, layout: Layout, left_out: Counter[str]
) -> Iterator[list[Picture]]:
    """The pictures of one part after another."""
    after = 0
    while rows := finder.settled_parts(wanted.parts, after, PAGE):
        after = rows[-1]["id"]
        for part in rows:
            decision = _standing(finder.reviews(part["id"]))
            if decision is None or decision["decision"] != part["review"]:
                left_out["decided anew meanwhile"] += 1
                continue
            pictures = list(_pictures(finder, read, part, decision, wanted.test_share, layout.wants_maps))
            if not pictures:
                left_out["without a picture"] += 1
            elif layout.whole_parts and {each.row["view"] for each in pictures} != set(layout.views):
                left_out["not seen by every camera"] += 1
            else:
                yield pictures


def _standing(records: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The last record that is no undo and was not undone."""
    undone = {each["supersedes"] for each in records if each["decision"] == "undo"}
    left = [each for each in records if each["decision"] != "undo" and each["id"] not in undone]
    return left[-1] if left else None


def _pictures(
    finder: Finder, read: Read, part: dict[str, Any], decision: dict[str, Any], test_share: float, maps: bool
) -> Iterator[Picture]:
    listed = finder.attachments(part["edge_id"], part["part_id"])
    attachments = [each for each in listed if each["sha256"] is not None and each["removed_ns"] is None]
    header = finder.header_of(part)
    label = class_of(decision)
    group = f"serial {part['serial']}" if part["serial"] else f"{part['edge_id']}/{part['part_id']}"
    found = {each["view"]: each for each in attachments if each["role"] == "image" and each["codec"] in CODECS}
    maps_of = {each["view"]: each for each in attachments if each["role"] == "map" and each["codec"] == "raw"}
    for view, row in sorted(found.items()):
        data = read(row["sha256"])
        if data is None:
            continue
        map_row = maps_of.get(view) if maps else None
        yield Picture(
            name=name_of(part, row),
            data=data,
            part=part,
            header=header,
            row=row,
            map_row=map_row,
            map_data=None if map_row is None else read(map_row["sha256"]),
            label=label,
            split=side_of(label, group, test_share),
            group=group,
            decision=decision,
        )


def _entry(picture: Picture, written: list[tuple[str, bytes]]) -> dict[str, Any]:
    """Where one picture is from, and what was made of it."""
    part, decision = picture.part, picture.decision
    (path, data), *others = written
    names = ("edge_id", "part_id", "spool_id", "seq", "serial", "lot", "t_wall_ns", "verdict", "score", "threshold")
    judged_by = ("recipe", "bundle_id", "model_sha256", "calibration_id", "engine")
    said = ("id", "decision", "defect_class", "inspector", "t_wall_ns", "sha256")
    return {
        "file": path,
        "sha256": _sha256(data),
        "label": picture.label,
        "split": picture.split,
        "view": picture.row["view"],
        "part": {name: part[name] for name in ("id", *names, "audited")} | {"time": iso(part["t_wall_ns"])},
        "judged_by": {name: part.get(name) for name in judged_by},
        "decision": {name: decision[name] for name in said} | {"time": iso(decision["t_wall_ns"])},
        "drawn_by_machine": {path: _sha256(data) for path, data in others},
    }


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
