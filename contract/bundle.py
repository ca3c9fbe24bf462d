"""The bundle: a folder with the graph and all that belongs to it, verified whenever it is opened (training to edge)."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import Field

from contract.camera import CameraControls
from contract.config import Strict, validate
from contract.errors import BundleError, ConfigError
from contract.recipe import Fixture, Places, QualityBounds, Recipe, Thresholds
from contract.release import MAX_STEPS, State, Step, digest_of, draft, refuse_unreleased, sign, state_of
from contract.signing import SigningPair, Trusted

FORMAT = "flawline.bundle/1"
MANIFEST = "bundle.json"
MAX_MANIFEST_BYTES = 16 << 20
MAX_FILE_BYTES = 4 << 30
ROLE_GRAPH = "graph.fp32"
ROLE_GRAPH_FP16 = "graph.fp16"
ROLE_GRAPH_INT8 = "graph.int8"
ROLE_DATA = "data"
ROLE_BASELINE = "baseline"  # what good parts measured, for the watch over drift
ROLE_FIXTURE = "fixture"  # the picture of the mark by which a part is found
ROLE_PREPROCESS = "preprocess"  # what corrects the camera's raw frames: contract.correction
# What a calibration knows of places, one file a view, by the view's index: `level.0`
ROLE_LEVEL = "level"
ROLE_MASK = "mask"
ROLE_FILL = "fill"
PLACE_ROLES = (ROLE_LEVEL, ROLE_MASK, ROLE_FILL)

Precision = Literal["fp32", "fp16", "int8"]
# precision -> role
GRAPHS: dict[Precision, str] = {"fp32": ROLE_GRAPH, "fp16": ROLE_GRAPH_FP16, "int8": ROLE_GRAPH_INT8}
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def as_precision(text: str) -> Precision:
    """A precision by its name; raises ConfigError naming those that there are."""
    for name in GRAPHS:
        if name == text:
            return name
    raise ConfigError(f"--precision {text!r}: no such precision; there are: {', '.join(GRAPHS)}")


class FileEntry(Strict):
    """One file of the bundle, its path relative to the folder with forward slashes."""

    path: str = Field(min_length=1, max_length=200)
    sha256: Sha256
    size: int = Field(ge=0, le=MAX_FILE_BYTES, description="bytes")


class ModelInfo(Strict):
    """What was trained: name in the model table, settings, parameter count, how the score is made."""

    name: str
    parameters: int = Field(ge=0)
    score: str
    map_hw: tuple[int, int]
    settings: dict[str, Any] = Field(default_factory=dict)


class GoldenInt8(Strict):
    """What the INT8 graph gave for the golden images on the engine that it was admitted with; it is for no other."""

    engine: str = Field(description="name in the table of engines")
    scores: list[float]
    map_means: list[float]
    tolerance: float = Field(0.05, gt=0, description="relative: processors round differently")


class Golden(Strict):
    """An image (uint8 tiles stacked in one ``.npy`` of [N, H, W, C]) and the scores that PyTorch gave its tiles.

    Every engine must agree with ``scores`` and ``map_means`` before it serves.
    """

    role: str
    scores: list[float]
    map_means: list[float]
    tolerance: float = Field(1e-4, gt=0, description="relative, for the FP32 graph")
    tolerance_fp16: float | None = Field(None, gt=0, le=0.1, description="for the FP16 graph, where there is one")
    int8: GoldenInt8 | None = Field(None, description="for the INT8 graph, where there is one")
    preprocess: Sha256 | None = Field(None, description="of the preprocess file that its pictures went through")

    def tolerance_of(self, precision: Precision) -> float | None:
        """Relative, for the graph of ``precision``; None where the bundle has none."""
        if precision == "int8":
            return None if self.int8 is None else self.int8.tolerance
        return self.tolerance if precision == "fp32" else self.tolerance_fp16


class DataFingerprint(Strict):
    """Which images made the model; the hashes per split stand in the file of role ``data``."""

    name: str
    fit_images: int
    fit_groups: int
    validation_images: int
    validation_groups: int
    holdout_images: int
    holdout_groups: int
    grouping: str


class PictureSizes(Strict):
    """Smallest and largest good picture that a calibration saw, in pixels: how much of the frame was cut out."""

    width: tuple[int, int]
    height: tuple[int, int]


class Manifest(Strict):
    """``bundle.json``. ``digest`` is the sha256 of the rest in canonical JSON."""

    format: Literal["flawline.bundle/1"] = FORMAT  # type: ignore[assignment]
    id: str = Field(min_length=8, max_length=64)
    name: str = Field(min_length=1, max_length=100)
    created: str
    model: ModelInfo
    recipe: Recipe
    files: dict[str, FileEntry] = Field(description="role -> file")
    golden: Golden
    data: DataFingerprint
    training: dict[str, Any] = Field(default_factory=dict)
    metrics: dict[str, Any] = Field(default_factory=dict)
    thresholds: Thresholds | None = None
    quality: QualityBounds | None = None
    places: Places | None = None
    fixture: Fixture | None = None
    pictures: PictureSizes | None = Field(None, description="set with the thresholds")
    cameras: dict[str, CameraControls] = Field(default_factory=dict, max_length=64, description="by id, or `any`")
    history: list[Step] = Field(default_factory=list, max_length=MAX_STEPS, description="of its state; only added to")
    digest: str = ""

    def computed_digest(self) -> str:
        """sha256 over everything but the digest itself."""
        return digest_of(self.model_dump(mode="json", exclude={"digest"}))

    def place_files(self) -> dict[str, FileEntry]:
        """The files of normal levels and masks, by role."""
        return {role: entry for role, entry in self.files.items() if role.partition(".")[0] in PLACE_ROLES}

    def calibration_id(self) -> str | None:
        """Short hash of thresholds, bounds, places, preprocess file and fixture: changes whenever a verdict could."""
        if self.thresholds is None or self.quality is None:
            return None
        parts = [self.thresholds.model_dump_json(), self.quality.model_dump_json()]
        parts += [] if self.places is None else [self.places.model_dump_json()]
        parts += [f"{role} {entry.sha256}" for role, entry in sorted(self.place_files().items())]
        if ROLE_PREPROCESS in self.files:
            parts.append(f"{ROLE_PREPROCESS} {self.files[ROLE_PREPROCESS].sha256}")
        if self.fixture is not None:
            parts += [self.fixture.model_dump_json(), self.files[ROLE_FIXTURE].sha256]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def preprocess_fault(manifest: Manifest) -> str | None:
    """Why thresholds or golden images do not belong to the preprocess file that the bundle holds; None: they do."""
    entry, thresholds = manifest.files.get(ROLE_PREPROCESS), manifest.thresholds
    now = None if entry is None else entry.sha256
    made = {"golden images": manifest.golden.preprocess}
    made |= {} if thresholds is None else {"thresholds": thresholds.preprocess}
    if not (stale := {what: of for what, of in made.items() if of != now}):
        return None

    def told(sha256: str | None) -> str:
        return "none" if sha256 is None else f"{sha256[:12]}..."

    was = ", ".join(f"its {what} were made with {told(of)}" for what, of in stale.items())
    return (
        f"the preprocess file was changed: the bundle holds {told(now)}, and {was}, so that no verdict would hold. "
        "Measure them anew on pictures that the camera takes as it is now: flawline calibrate thresholds BUNDLE "
        "--data DIR; where pictures look different than before, flawline train --preprocess FILE first"
    )


class Bundle:
    """An opened, verified bundle: its manifest and the paths of its files by role.

    ``content``: sha256 of what is signed, that is of the manifest without its history. ``exact``: the manifest stands
    in its file byte for byte as signing writes it.
    """

    def __init__(self, root: Path, manifest: Manifest, content: str, exact: bool) -> None:
        self.root = root
        self.manifest = manifest
        self.content = content
        self.exact = exact

    def path(self, role: str) -> Path:
        """Path of the file of ``role``; raises BundleError naming the roles that there are."""
        entry = self.manifest.files.get(role)
        if entry is None:
            raise BundleError(f"{self.root}: no file of role {role!r}; it has {', '.join(sorted(self.manifest.files))}")
        return self.root / entry.path

    def json(self, role: str) -> Any:
        """Content of a JSON file of the bundle."""
        return json.loads(self.path(role).read_bytes())

    @property
    def state(self) -> State:
        """As its history says; whether that is true, ``refuse_unreleased`` and ``verify_history`` find out."""
        return state_of(self.manifest.history)

    @property
    def model_sha256(self) -> str:
        return self.manifest.files[ROLE_GRAPH].sha256


def open_bundle(folder: Path) -> Bundle:
    """Open and verify a bundle: format, digest, every path, size and sha256. Raises BundleError."""
    manifest, raw, data = _read_manifest(folder)
    for role, entry in manifest.files.items():
        _verify(folder, role, entry)
    for role in (ROLE_GRAPH, ROLE_DATA, manifest.golden.role):
        if role not in manifest.files:
            raise BundleError(f"{folder}: the bundle has no file of role {role!r}; train it again")
    if manifest.fixture is not None and ROLE_FIXTURE not in manifest.files:
        raise BundleError(f"{folder}: the bundle has a fixture and no file of role {ROLE_FIXTURE!r}; train it again")
    return Bundle(folder, manifest, _content_of(raw), data == _as_signed(raw))


def read_manifest(folder: Path) -> Manifest:
    """The manifest alone, its digest verified and its files not. Raises BundleError."""
    return _read_manifest(folder)[0]


def _content_of(raw: dict[str, Any]) -> str:
    return digest_of({name: value for name, value in raw.items() if name not in ("digest", "history")})


def _read_manifest(folder: Path) -> tuple[Manifest, dict[str, Any], bytes]:
    """The manifest, the JSON of its file, and the file's bytes."""
    path = folder / MANIFEST
    if not folder.is_dir():
        raise BundleError(f"{folder}: no such folder; expected a bundle written by `flawline train --out {folder}`")
    if not path.is_file():
        raise BundleError(f"{folder}: not a bundle: {MANIFEST} is missing; `flawline train` writes it last")
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise BundleError(f"{path}: {path.stat().st_size} bytes, at most {MAX_MANIFEST_BYTES}: not a bundle's manifest")
    try:
        data = path.read_bytes()
        raw = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: not valid JSON ({error}): the bundle is damaged, copy it again") from error
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        found = raw.get("format") if isinstance(raw, dict) else type(raw).__name__
        raise BundleError(f"{path}: format {found!r:.60}; this version reads {FORMAT!r}")
    try:
        manifest = validate(Manifest, raw, str(path))
    except ConfigError as error:
        raise BundleError(f"{error}\n{path}: the manifest was changed or written by another version") from error
    # Of what stands in the file: a field that this version adds with a default is not in an older bundle's digest.
    if manifest.digest != digest_of({name: value for name, value in raw.items() if name != "digest"}):
        raise BundleError(f"{path}: content and digest differ: the manifest was changed after it was written")
    return manifest, raw, data


def _verify(folder: Path, role: str, entry: FileEntry) -> None:
    path = _inside(folder, entry.path, role)
    try:
        info = path.lstat()
    except OSError as error:
        raise BundleError(f"{path}: role {role!r}: cannot be read ({error.strerror})") from error
    if not stat.S_ISREG(info.st_mode):
        raise BundleError(f"{path}: role {role!r}: not a regular file")
    if info.st_size != entry.size:
        raise BundleError(f"{path}: role {role!r}: {info.st_size} bytes, the manifest says {entry.size}")
    found = sha256_of(path)
    if found != entry.sha256:
        raise BundleError(f"{path}: role {role!r}: sha256 {found[:12]}..., the manifest says {entry.sha256[:12]}...")


def _inside(folder: Path, relative: str, role: str) -> Path:
    pure = PurePosixPath(relative)
    if pure.is_absolute() or ".." in pure.parts or "\\" in relative or ":" in relative:
        raise BundleError(f"{folder}: role {role!r}: path {relative!r} leaves the bundle")
    path = folder / relative
    if folder.resolve() not in path.resolve().parents:
        raise BundleError(f"{folder}: role {role!r}: path {relative!r} leaves the bundle through a link")
    return path


def sha256_of(path: Path) -> str:
    """sha256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_entry(folder: Path, relative: str) -> FileEntry:
    """Describe a file that was written into a bundle's folder."""
    path = folder / relative
    return FileEntry(path=relative, sha256=sha256_of(path), size=path.stat().st_size)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``bundle.json`` whole or not at all (temporary file, fsync, rename), with its digest.

    A bundle is a draft from here on: what was signed before was another content.
    """
    if not manifest.history or manifest.history[-1].state != "draft":
        why = f"{', '.join(_changed(folder, manifest))} changed" if manifest.history else "made"
        manifest = manifest.model_copy(update={"history": [*manifest.history, draft(manifest.history, why)]})
    content = manifest.model_copy(update={"digest": manifest.computed_digest()})
    write_atomic(folder / MANIFEST, (content.model_dump_json(indent=1) + "\n").encode())


def put_files(bundle: Bundle, contents: Mapping[str, tuple[str, bytes]], **update: Any) -> dict[str, Path]:
    """Make ``contents`` (role -> name and bytes) files of the bundle; returns their paths by role.

    ``update`` are fields of the manifest. The content's hash goes into each file's name: until the manifest is
    replaced, the old one stays whole and valid; what only the old one named is removed then. Raises BundleError where
    the bundle was changed since it was opened: by another command, or by a person who signed it.
    """
    standing = _read_manifest(bundle.root)[0]
    if standing.digest != bundle.manifest.digest:
        raise BundleError(f"{bundle.root}: was changed while it was measured; nothing was written: start again")
    made = {role: _write_named(bundle.root, name, data) for role, (name, data) in contents.items()}
    files = {**bundle.manifest.files, **{role: file_entry(bundle.root, path.name) for role, path in made.items()}}
    write_manifest(bundle.root, bundle.manifest.model_copy(update={**update, "files": files}))
    for path in {entry.path for entry in standing.files.values()} - {entry.path for entry in files.values()}:
        (bundle.root / path).unlink(missing_ok=True)
    return made


def _write_named(folder: Path, name: str, data: bytes) -> Path:
    stem, dot, suffix = name.rpartition(".")
    path = folder / f"{stem}-{hashlib.sha256(data).hexdigest()[:8]}{dot}{suffix}"
    write_atomic(path, data)
    return path


def _changed(folder: Path, manifest: Manifest) -> list[str]:
    """Names of what differs from the manifest that stands in ``folder``."""
    try:
        before, _, _ = _read_manifest(folder)
    except BundleError:
        return ["everything"]
    names = (name for name in Manifest.model_fields if name not in ("digest", "history"))
    return [name for name in names if getattr(before, name) != getattr(manifest, name)] or ["nothing"]


def advance(bundle: Bundle, state: State, pair: SigningPair, why: str) -> Bundle:
    """Sign ``bundle`` to ``state`` and open it again. Raises BundleError.

    What stands in the file is kept as it stands, so that an older bundle keeps the signatures it has.
    """
    manifest, raw, _ = _read_manifest(bundle.root)
    if manifest.digest != bundle.manifest.digest:
        raise BundleError(f"{bundle.root}: was changed while it was looked at; nothing was signed: try again")
    history = manifest.history or [draft([], "made before bundles had a history")]
    step = sign(history, bundle.content, state, pair, why, str(bundle.root))
    content: dict[str, Any] = {**raw, "history": [each.model_dump(mode="json") for each in [*history, step]]}
    content["digest"] = digest_of({name: value for name, value in content.items() if name != "digest"})
    write_atomic(bundle.root / MANIFEST, _as_signed(content))
    return open_bundle(bundle.root)


def _as_signed(raw: dict[str, Any]) -> bytes:
    """The one way in which a signed manifest is written, so that not even white space can differ."""
    return (json.dumps(raw, indent=1) + "\n").encode()


def refuse_unfit_for_production(bundle: Bundle, trusted: Trusted | None, retired: list[str] | None = None) -> None:
    """Raise BundleError unless the bundle is released, rightly signed, as it was signed and not retired.

    ``trusted``: whose signatures count; None: anybody's. ``retired``: contents (their first 16 digits or more) that are
    retired though a copy of them may not say so.
    """
    refuse_unreleased(bundle.manifest.history, bundle.content, trusted, str(bundle.root))
    if not bundle.exact:
        raise BundleError(
            f"{bundle.root / MANIFEST}: not byte for byte as it was signed; copy the bundle again, as binary files"
        )
    if any(bundle.content.startswith(each) for each in retired or ()):
        raise BundleError(
            f"{bundle.root}: content {bundle.content[:16]} is retired on this edge ([bundles] retired); expected a "
            "released bundle that is not: run its successor"
        )


def write_atomic(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data`` so that a reader or a power cut sees the old file or the new one."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
