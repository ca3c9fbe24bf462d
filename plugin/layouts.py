"""How a data set lies in a folder: MVTec AD, COCO, FiftyOne's own format (after hop 12)."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import struct
import unicodedata
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from plugin.models import iso
from plugin.store import chance

Box = tuple[float, float, float, float]
Transform = Sequence[float]
SAME: Transform = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
FIFTYONE = "1.0.0"
"""The version of FiftyOne whose format is written; newer ones bring it up to theirs."""

NOTES = (
    "good and defect are inspectors' decisions that stand, on the whole part; who decided is with each file",
    "boxes, maps and masks are the machine's: an inspector judged the part, not their outlines",
    "pictures of one part, or of parts that bear the same serial, are on one side of the split",
    "parts were shown because they were flagged or drawn for the audit: they are no sample of the production",
)


class Picture(NamedTuple):
    """One picture of a part. ``name`` is a file's, of our own making; ``label`` is good or a defect's class."""

    name: str
    data: bytes
    part: dict[str, Any]
    header: dict[str, Any]
    row: dict[str, Any]
    map_row: dict[str, Any] | None
    map_data: bytes | None
    label: str
    split: Literal["train", "test"]
    group: str
    decision: dict[str, Any]

    @property
    def size(self) -> tuple[int, int]:
        """Width, height in pixels."""
        shape = [*self.row["shape"], 0, 0]
        return int(shape[1]), int(shape[0])

    def boxes(self) -> Iterator[tuple[dict[str, Any], Box]]:
        """The machine's regions of this view, as x, y, width, height in the picture's pixels."""
        for region in self.header.get("regions", []):
            if region["view"] == self.row["view"]:
                box = in_picture(region["box_px"], self.row["to_part"], self.size)
                if box is not None:
                    yield region, box

    def deviation(self) -> npt.NDArray[np.float32] | None:
        """The machine's map [H, W], 1 where it reaches the limit; None where there is none that can be read."""
        row = self.map_row
        if row is None or self.map_data is None:
            return None
        kind = {"float16": "<f2", "float32": "<f4", "uint8": "u1"}[row["dtype"]]
        shape = [length for length in row["shape"] if length != 1]
        if len(shape) != 2 or len(self.map_data) != np.dtype(kind).itemsize * shape[0] * shape[1]:
            return None
        values = np.nan_to_num(np.frombuffer(self.map_data, kind).astype(np.float32), posinf=np.inf, neginf=0.0)
        limit = self.header.get("map_threshold") or float(np.max(values, initial=0.0)) or 1.0
        return np.asarray(values / abs(limit), np.float32).reshape(shape)


class Layout(ABC):
    """What the layouts share. ``views``: every camera that saw one of the parts."""

    wants_maps: bool = False
    whole_parts: bool = False
    notes: tuple[str, ...] = ()

    def __init__(self, views: list[str], masks: bool, classes: tuple[str, ...]) -> None:
        self.views, self.classes = views, classes
        self.wants_maps = self.wants_maps or masks

    @abstractmethod
    def add(self, picture: Picture) -> Iterator[tuple[str, bytes]]:
        """Files of one picture, the picture first."""

    @abstractmethod
    def end(self) -> Iterator[tuple[str, bytes]]:
        """What lists them."""


class Mvtec(Layout):
    """``train/good``, ``test/good``, ``test/CLASS``; ``groups.csv`` says which pictures show one part.

    Of several cameras each part is a folder with a picture of each, as training wants it. Masks are written only where
    they are asked for: figures by pixels that rest on the machine's own maps flatter it.
    """

    def __init__(self, views: list[str], masks: bool, classes: tuple[str, ...]) -> None:
        super().__init__(views, masks, classes)
        self.whole_parts = len(views) > 1
        self._groups: dict[str, str] = {}
        self._cameras = {view: as_name(view, "view") for view in views}
        if len({name.casefold() for name in self._cameras.values()}) < len(views):
            self._cameras = {view: f"view-{n}" for n, view in enumerate(views, start=1)}
        if self.wants_maps:
            self.notes = (
                "ground_truth holds what the machine marked, drawn by nobody: figures by pixels that use it say "
                "how well a model agrees with the one before, not how well it finds defects",
            )

    def add(self, picture: Picture) -> Iterator[tuple[str, bytes]]:
        folder = f"{picture.split}/{picture.label}"
        stem, _, suffix = picture.name.rpartition(".")
        if self.whole_parts:
            part = stem.partition("-")[0]
            self._groups[f"{folder}/{part}"] = picture.group
            yield f"{folder}/{part}/{self._cameras[picture.row['view']]}.{suffix}", picture.data
            return
        self._groups[f"{folder}/{picture.name}"] = picture.group
        yield f"{folder}/{picture.name}", picture.data
        if picture.label != "good" and (mask := mask_of(picture)) is not None:
            yield f"ground_truth/{picture.label}/{stem}_mask.png", mask

    def end(self) -> Iterator[tuple[str, bytes]]:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("file", "group"))
        writer.writerows(self._groups.items())
        yield "groups.csv", text.getvalue().encode()


class Coco(Layout):
    """``images`` and ``annotations.json``: a good part has no annotations, whatever the machine marked.

    A defective part on which it marked nothing that lies in the picture, nor in another view, is annotated with the
    whole picture: without an annotation its picture would be taken for a good one.
    """

    def __init__(self, views: list[str], masks: bool, classes: tuple[str, ...]) -> None:
        super().__init__(views, masks, classes)
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []
        self._categories: dict[str, int] = {}
        for name in classes:
            self._categories.setdefault(label_of(name), len(self._categories) + 1)

    def add(self, picture: Picture) -> Iterator[tuple[str, bytes]]:
        number = len(self._images) + 1
        width, height = picture.size
        image = {"id": number, "file_name": f"images/{picture.name}", "width": width, "height": height}
        said = {
            "label": picture.label,
            "split": picture.split,
            "sha256": picture.row["sha256"],
            "inspector": picture.decision["inspector"],
            "decided": iso(picture.decision["t_wall_ns"]),
            "bundle_id": picture.part.get("bundle_id"),
            "model_sha256": picture.part.get("model_sha256"),
        }
        part = {name: picture.part[name] for name in ("edge_id", "part_id", "serial", "lot")}
        self._images.append({**image, "date_captured": iso(picture.part["t_wall_ns"]), "flawline": {**part, **said}})
        if picture.label != "good":
            boxes = list(picture.boxes())
            for region, box in boxes:
                self._annotate(number, picture.label, box, {"drawn_by": "machine", "peak": region["peak"]})
            elsewhere = any(each.get("view") != picture.row["view"] for each in picture.header.get("regions") or ())
            if not boxes and not elsewhere:
                whole = (0.0, 0.0, float(width), float(height))
                self._annotate(number, picture.label, whole, {"drawn_by": "nobody: the whole picture"})
        yield f"images/{picture.name}", picture.data

    def _annotate(self, image: int, category: str, box: Box, said: dict[str, Any]) -> None:
        annotation = {
            "id": len(self._annotations) + 1,
            "image_id": image,
            "category_id": self._categories.setdefault(category, len(self._categories) + 1),
            "bbox": [round(each, 2) for each in box],
            "area": round(box[2] * box[3], 2),
            "segmentation": [],
            "iscrowd": 0,
            "flawline": said,
        }
        self._annotations.append(annotation)

    def end(self) -> Iterator[tuple[str, bytes]]:
        categories = [{"id": n, "name": name, "supercategory": "defect"} for name, n in self._categories.items()]
        found = {
            "info": {"description": "Flawline: " + "; ".join(NOTES), "contributor": "manifest.json names each part"},
            "licenses": [],
            "images": self._images,
            "annotations": self._annotations,
            "categories": categories,
        }
        yield "annotations.json", text_of(found)


class FiftyOne(Layout):
    """FiftyOne's own format on disk: maps as heatmaps, regions as detections, decisions as ``ground_truth``."""

    wants_maps = True
    TEXTS: ClassVar = ("edge_id", "part_id", "serial", "lot", "view", "verdict", "recipe", "bundle_id", "model_sha256")
    NUMBERS: ClassVar = ("score", "threshold")

    def __init__(self, views: list[str], masks: bool, classes: tuple[str, ...]) -> None:
        super().__init__(views, masks, classes)
        self._samples: list[dict[str, Any]] = []

    def add(self, picture: Picture) -> Iterator[tuple[str, bytes]]:
        yield f"data/{picture.name}", picture.data
        part = {**picture.part, "view": picture.row["view"]}
        sample: dict[str, Any] = {
            "_id": _object_id(picture.name),
            "_rand": chance("rand", picture.part),
            "_media_type": "image",
            "filepath": f"data/{picture.name}",
            "tags": [picture.split],
            "metadata": None,
            "ground_truth": _label(picture, "Classification", label=picture.label),
            "regions": {"_cls": "Detections", "detections": _detections(picture)},
            "deviation": None,
            "inspector": picture.decision["inspector"],
            **{name: part.get(name) for name in (*self.TEXTS, *self.NUMBERS)},
        }
        values = picture.deviation()
        if values is not None:
            path = f"fields/deviation/{picture.name.rpartition('.')[0]}.png"
            sample["deviation"] = _label(picture, "Heatmap", map_path=path, range=[0.0, 255.0])
            # 128 is the limit, 255 twice the limit or more
            yield path, grey_png(np.clip(values * 128.0, 0, 255).astype(np.uint8))
        self._samples.append(sample)

    def end(self) -> Iterator[tuple[str, bytes]]:
        yield "samples.json", text_of({"samples": self._samples})
        yield "metadata.json", text_of(_metadata(self.TEXTS, self.NUMBERS))


LAYOUTS: dict[str, Callable[[list[str], bool, tuple[str, ...]], Layout]] = {
    "mvtec": Mvtec,
    "coco": Coco,
    "fiftyone": FiftyOne,
}


def as_name(text: str, otherwise: str) -> str:
    """A text of whoever wrote it as a file's name: letters, digits, ``_`` and ``-`` of any script."""
    plain = re.sub(r"[^\w-]+", "_", unicodedata.normalize("NFC", text)).strip("_")
    return plain.encode()[:60].decode(errors="ignore") or otherwise


def label_of(defect_class: str | None) -> str:
    """A class of defects as a folder's name; ``defect`` where none was given, and never ``good``."""
    name = as_name(defect_class or "", "defect")
    return "defect" if name.lower() == "good" else name


def class_of(decision: dict[str, Any]) -> str:
    """``good``, or the class of the defect that an inspector named."""
    return "good" if decision["decision"] == "good" else label_of(decision["defect_class"])


def name_of(part: dict[str, Any], row: dict[str, Any]) -> str:
    """A picture's file name: none of it is what an edge or a person wrote."""
    return f"{part['id']:09d}-{row['id']}-{row['sha256'][:12]}.{row['codec']}"


def side_of(label: str, group: str, test_share: float) -> Literal["train", "test"]:
    """By the group alone, so that all of a part's pictures go together, today and in the next export."""
    drawn = chance("split", {"edge_id": "", "part_id": group}) < test_share
    return "test" if drawn or label != "good" else "train"


def in_picture(box: Sequence[float], to_part: Transform | None, size: tuple[int, int]) -> Box | None:
    """A box in the part's pixels as one in the picture's, cut off at its edges; None where nothing of it is there."""
    back = _inverse(to_part)
    if back is None:
        return None
    x, y, width, height = box
    corners = [(x, y), (x + width, y), (x, y + height), (x + width, y + height)]
    u = [back[0] * px + back[1] * py + back[2] for px, py in corners]
    v = [back[3] * px + back[4] * py + back[5] for px, py in corners]
    left, top = max(0.0, min(u)), max(0.0, min(v))
    right, bottom = min(float(size[0]), max(u)), min(float(size[1]), max(v))
    return (left, top, right - left, bottom - top) if right > left and bottom > top else None


def _inverse(transform: Transform | None) -> Transform | None:
    a, b, c, d, e, f = transform or SAME
    determinant = a * e - b * d
    if abs(determinant) < 1e-12:
        return None
    return (
        e / determinant,
        -b / determinant,
        (b * f - c * e) / determinant,
        -d / determinant,
        a / determinant,
        (c * d - a * f) / determinant,
    )


def mask_of(picture: Picture) -> bytes | None:
    """Where the machine's map reaches its limit, as a PNG of the picture's size; None where it reaches it nowhere."""
    values, row = picture.deviation(), picture.map_row
    back = None if row is None else _inverse(row["to_part"])
    if values is None or back is None:
        return None
    width, height = picture.size
    a, b, c, d, e, f = picture.row["to_part"] or SAME
    v, u = np.mgrid[0:height, 0:width].astype(np.float32) + 0.5
    x, y = a * u + b * v + c, d * u + e * v + f
    column = np.floor(back[0] * x + back[1] * y + back[2]).astype(np.int64)
    line = np.floor(back[3] * x + back[4] * y + back[5]).astype(np.int64)
    inside = (column >= 0) & (line >= 0) & (column < values.shape[1]) & (line < values.shape[0])
    reached = values[np.where(inside, line, 0), np.where(inside, column, 0)] >= 1
    mask = (inside & reached).astype(np.uint8) * 255
    return grey_png(mask) if mask.any() else None


def grey_png(grey: npt.NDArray[np.uint8]) -> bytes:
    """An [H, W] picture of bytes."""
    height, width = grey.shape
    lines = b"".join(b"\0" + line.tobytes() for line in grey)
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def text_of(found: Any) -> bytes:
    """JSON for a file."""
    return json.dumps(found, indent=1).encode()


def _detections(picture: Picture) -> list[dict[str, Any]]:
    width, height = picture.size
    found = []
    for number, (region, (x, y, w, h)) in enumerate(picture.boxes()):
        box = [x / width, y / height, w / width, h / height]
        found.append(_label(picture, "Detection", number, label="deviation", bounding_box=box, peak=region["peak"]))
    return found


def _label(picture: Picture, kind: str, number: int = 0, **fields: Any) -> dict[str, Any]:
    return {"_id": _object_id(f"{picture.name} {kind} {number}"), "_cls": kind, "tags": [], **fields}


def _object_id(text: str) -> dict[str, str]:
    return {"$oid": hashlib.sha256(text.encode()).hexdigest()[:24]}


def _field(
    name: str, kind: str, document: str | None = None, sub: str | None = None, inner: Iterable[dict[str, Any]] = ()
) -> dict[str, Any]:
    """A field in FiftyOne's own words."""
    return {
        "name": name,
        "ftype": f"fiftyone.core.fields.{kind}",
        "embedded_doc_type": document and f"fiftyone.core.{document}",
        "subfield": sub and f"fiftyone.core.fields.{sub}",
        "fields": list(inner),
        "db_field": {"id": "_id"}.get(name, name),
    }


def _fields(kind: str, *names: str) -> list[dict[str, Any]]:
    return [_field(name, kind) for name in names]


def _document(name: str, kind: str, *inner: dict[str, Any]) -> dict[str, Any]:
    return _field(name, "EmbeddedDocumentField", kind, inner=inner)


def _metadata(texts: Iterable[str], numbers: Iterable[str]) -> dict[str, Any]:
    """What FiftyOne has to know of the samples' fields."""
    tags = _field("tags", "ListField", sub="StringField")
    label = (*_fields("ObjectIdField", "id"), tags)
    box = _field("bounding_box", "ListField", sub="FloatField")
    detection = (*label, *_fields("StringField", "label"), box, *_fields("FloatField", "confidence", "peak"))
    pixels = _fields("IntField", "size_bytes", "width", "height", "num_channels")
    return {
        "name": "flawline",
        "version": FIFTYONE,
        "media_type": "image",
        "sample_fields": [
            *_fields("ObjectIdField", "id"),
            *_fields("StringField", "filepath"),
            tags,
            _document("metadata", "metadata.ImageMetadata", *pixels, *_fields("StringField", "mime_type")),
            *_fields("DateTimeField", "created_at", "last_modified_at"),
            _document(
                "ground_truth",
                "labels.Classification",
                *label,
                *_fields("StringField", "label"),
                *_fields("FloatField", "confidence"),
            ),
            _document(
                "regions",
                "labels.Detections",
                _field("detections", "ListField", "labels.Detection", "EmbeddedDocumentField", detection),
            ),
            _document(
                "deviation",
                "labels.Heatmap",
                *label,
                *_fields("ArrayField", "map"),
                *_fields("StringField", "map_path"),
                _field("range", "HeatmapRangeField", sub="FloatField"),
            ),
            *_fields("StringField", "inspector", *texts),
            *_fields("FloatField", *numbers),
        ],
    }
