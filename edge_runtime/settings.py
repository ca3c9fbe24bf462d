"""The edge's configuration file as strict models (read at start, before hop 1)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from contract.bundle import Precision
from contract.config import Strict, load_toml
from contract.keys import SECRET, is_loopback, leaves_machine

Identifier = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")]


class PresenceSettings(Strict):
    """How a part on the belt is told from the belt."""

    foreground: Literal["bright", "dark"] = Field("bright", description="the part against the belt")
    threshold: int | None = Field(None, ge=1, le=254, description="grey level; none: from the belt at the frame's rim")
    min_area: float = Field(0.005, gt=0, lt=1, description="smallest part as a share of the frame")
    direction: Literal["right", "left", "down", "up"] = "right"
    part_length_px: int | None = Field(None, ge=8, description="length along the belt; set, it parts two that touch")
    settle_frames: int = Field(2, ge=1, le=50, description="frames wholly in view before a part is taken")
    margin_px: int = Field(0, ge=0, le=512, description="belt left around the cut-out part")


class CodeSettings(Strict):
    """A code on the part, read as its serial."""

    symbology: Literal["datamatrix", "qr", "code128"] = "datamatrix"
    region: tuple[int, int, int, int] | None = Field(
        None, description="x, y, width, height in the frame where the code is; none: what is cut out of the frame"
    )
    required: bool = Field(True, description="a part whose code cannot be read is NOT_INSPECTED")
    budget_ms: int = Field(200, ge=1, le=10_000, description="longest time from the beginning of the reading")
    max_length: int = Field(100, ge=1, le=100, description="characters; a longer code is not this part's")


class CameraSettings(Strict):
    """One camera: where it is, what triggers a part, what happens when the station is slower than the line."""

    id: Identifier
    url: str = Field(min_length=1, description="usb://, rtsp://, http://, gentl://, file://, watch:// or synthetic://")
    trigger: Literal["presence", "every-frame", "hardware", "software", "follow"] = "presence"
    exposure_offset_ms: float | None = Field(
        None, ge=-10_000, le=10_000, description="software: take the frame nearest to so long after the request"
    )
    within_ms: float = Field(500.0, gt=0, le=60_000, description="software: how far from that the frame may lie")
    line_triggered: bool = Field(False, description="follow: its own trigger input makes each frame (gentl://)")
    fixture: Literal["foreground", "region", "template"] = Field(
        "foreground", description="what is cut out of the frame; template: the bundle's fixture finds it, at any turn"
    )
    region: tuple[int, int, int, int] | None = Field(None, description="x, y, width, height in the frame")
    policy: Literal["every-part", "freshest"] = "every-part"
    slots: int = Field(8, ge=3, le=256, description="frames in shared memory")
    max_frame_mb: float = Field(16.0, gt=0, le=512, description="largest frame that a slot takes")
    stall_s: float = Field(3.0, gt=0.1, le=60, description="no frame for so long: the camera process is replaced")
    frozen_s: float | None = Field(
        None, ge=0, le=60, description="the same picture for so long: it is replaced as well; 0: never"
    )
    fps: float | None = Field(None, gt=0, le=1000, description="what it must give; none: as learnt at its start")
    presence: PresenceSettings = Field(default_factory=PresenceSettings)
    code: CodeSettings | None = Field(None, description="read from each part as its serial; needs flawline[codes]")

    @property
    def triggered(self) -> bool:
        """Whether the line triggers the camera itself."""
        return self.trigger == "hardware" or self.line_triggered

    @property
    def each_frame(self) -> bool:
        """Whether each frame is a part."""
        return self.trigger in ("every-frame", "hardware")

    @property
    def by_time(self) -> bool:
        """Whether its frames are kept for whoever asks for one by its time; it makes no part by itself."""
        return self.trigger in ("software", "follow")

    @model_validator(mode="after")
    def _trigger_possible(self) -> CameraSettings:
        if self.line_triggered and self.trigger != "follow":
            raise ValueError(
                f"camera {self.id!r}: line_triggered belongs to trigger = 'follow'; set 'hardware' instead"
            )
        if self.exposure_offset_ms is not None and self.trigger != "software":
            raise ValueError(f"camera {self.id!r}: exposure_offset_ms belongs to trigger = 'software'")
        if self.code is not None and self.trigger == "follow":
            raise ValueError(
                f"camera {self.id!r}: follows another one; a code is read by the camera that makes the part: move "
                "[cameras.code] there"
            )
        if self.triggered and not self.url.startswith("gentl://"):
            raise ValueError(
                f"camera {self.id!r}: trigger = 'hardware' (or line_triggered) needs a GenICam camera (gentl://), "
                "whose trigger can be set and whose frames are numbered; for others that are triggered themselves take "
                "'every-frame'"
            )
        if self.trigger != "every-frame" and self.url.startswith("watch://"):
            raise ValueError(
                f"camera {self.id!r}: each picture of a watched folder is a part, and {self.trigger!r} would take "
                "successive ones at the same place for one part, or none: set trigger = 'every-frame'"
            )
        return self

    @property
    def frozen_after_s(self) -> float:
        """``frozen_s`` as it holds; unsaid, 2 s, and 0 for a compressed stream, which repeats a still scene exactly."""
        if self.frozen_s is not None:
            return self.frozen_s
        return 0.0 if self.url.startswith(("rtsp://", "http://", "https://")) else 2.0

    @model_validator(mode="after")
    def _frozen_noticed(self) -> CameraSettings:
        if self.frozen_s is not None and 0 < self.frozen_s < 0.2:
            raise ValueError(
                f"camera {self.id!r}: frozen_s = {self.frozen_s:g}; expected 0 (never) or from 0.2 to 60 seconds"
            )
        return self

    @model_validator(mode="after")
    def _region_given(self) -> CameraSettings:
        if self.fixture == "region" and self.region is None:
            raise ValueError(f"camera {self.id!r}: fixture = 'region' needs region = [x, y, width, height]")
        return self


class FollowerSettings(Strict):
    """A camera that looks at the same parts: of its frames the one nearest to the leading camera's is taken."""

    camera: Identifier
    offset_ms: float = Field(0.0, ge=-60_000, le=60_000, description="when it sees a part, after the leading camera")
    within_ms: float = Field(50.0, gt=0, le=60_000, description="how far from that the frame may lie")


class GroupSettings(Strict):
    """Cameras whose pictures make one part; the leading one's trigger makes it."""

    lead: Identifier
    followers: list[FollowerSettings] = Field(min_length=1, max_length=15)


class SpoolSettings(Strict):
    """The edge's own record of what the host has not committed yet."""

    max_mb: float = Field(2048.0, ge=1)
    max_rows: int = Field(1_000_000, ge=100)
    dead_mb: float = Field(256.0, ge=1, description="of what the host refused for good")
    dead_rows: int = Field(10_000, ge=10)
    sync_ms: float = Field(10.0, ge=0, le=1000, description="events of so long go to the disk in one sync")


class PreviewSettings(Strict):
    """Pictures for who watches; off where ``listen`` is not set."""

    listen: str | None = Field(None, pattern=r"^(tcp|ipc)://.+", description="tcp://127.0.0.1:5705, perhaps")
    fps: float = Field(5.0, gt=0, le=25, description="most pictures a second of each camera")
    width: int = Field(640, ge=64, le=1920, description="pixels of a picture's longer side")
    quality: int = Field(75, ge=10, le=95, description="of the JPEG")
    keys: Path | None = Field(None, description="folder with the preview's own key and those of who may watch")

    @model_validator(mode="after")
    def _keyed(self) -> PreviewSettings:
        if self.listen is not None and self.keys is None and leaves_machine(self.listen):
            raise ValueError(
                f"{self.listen} can be reached from other machines, and without keys the pictures are not encrypted, "
                "nor for anybody in particular: run `flawline keys new host --dir preview-keys` and set "
                'keys = "preview-keys" under [preview], or listen on 127.0.0.1'
            )
        return self


class HostLink(Strict):
    """Where events go."""

    endpoint: str = Field("tcp://127.0.0.1:5701", pattern=r"^(tcp|ipc)://.+")
    window: int = Field(64, ge=1, le=4096, description="messages sent and not yet acknowledged")
    resend_ms: int = Field(2000, ge=50, description="sent again when not acknowledged for so long")
    control: str | None = Field(None, pattern=r"^(tcp|ipc)://.+", description="the host's control socket")
    key: Path | None = Field(None, description="this edge's secret key file, made by `flawline keys new`")
    server_key: Path | None = Field(None, description="the host's public key file, carried from there")

    @model_validator(mode="after")
    def _keyed(self) -> HostLink:
        if (self.key is None) != (self.server_key is None):
            raise ValueError("`key` and `server_key` belong together: who we are, and whom we speak to")
        for endpoint in (self.endpoint, self.control or "ipc://none"):
            if self.key is None and leaves_machine(endpoint):
                raise ValueError(
                    f"{endpoint} is another machine, and without keys the way is neither encrypted nor authenticated: "
                    "run `flawline keys new EDGE_ID`, carry the host's host.key here, and set "
                    'key = "keys/EDGE_ID.key_secret" and server_key = "keys/host.key"'
                )
        return self


class RecipeSettings(Strict):
    """A further recipe that a host may select; number 1 is the edge's own ``bundle``."""

    number: int = Field(ge=2, le=65535)
    bundle: Path


class BundleSettings(Strict):
    """Which bundles a production edge takes."""

    trusted: Path | None = Field(None, description="folder of public keys, filled by `flawline keys sign-trust`")
    retired: list[Annotated[str, Field(pattern=r"^[0-9a-f]{16,64}$")]] = Field(
        default_factory=list, max_length=4096, description="contents that never run here, whatever their copy says"
    )


class DriftSettings(Strict):
    """The watch over drift. It changes no verdict."""

    on: bool = True
    false_alarms_per_month: float = Field(
        1.0, ge=0.001, le=1000, description="of the whole edge, at most, on average; a month is 30 days of parts"
    )
    defect_share: float = Field(0.05, ge=0, lt=0.5, description="of defective parts that is no drift and no alarm")
    parts_per_month: int | None = Field(
        None, ge=1, le=10**12, description="of each camera; none: the time between parts counts as it passes"
    )
    report_parts: int = Field(500, ge=1, le=1_000_000, description="parts between two reports to the host")


class MetricsSettings(Strict):
    """Where Prometheus may read this edge's figures; nowhere, unless asked for."""

    listen: str | None = Field(None, pattern=r"^(\[[0-9a-fA-F:.]+\]|[^\s:]+):\d{1,5}$", description="ADDRESS:PORT")
    token: Path | None = Field(None, description="file of mode 0600 whose text a reader must show; needed off loopback")

    @model_validator(mode="after")
    def _guarded(self) -> MetricsSettings:
        if self.listen is None:
            return self
        host, port = self.address()
        if port > 65535:
            raise ValueError(f"listen = {self.listen!r}: a port is at most 65535")
        if self.token is None and not is_loopback(host):
            raise ValueError(
                f"listen = {self.listen!r} can be reached from other machines: readers must show a token then; "
                'set token = "metrics.token" and make it: (umask 077; openssl rand -hex 32 > metrics.token)'
            )
        return self

    def address(self) -> tuple[str, int]:
        """Host, without brackets, and port to listen on."""
        host, _, port = (self.listen or "").rpartition(":")
        return host.strip("[]"), int(port or 0)


class LogSettings(Strict):
    """How the edge writes its log; it always goes to standard error."""

    format: Literal["text", "json"] = "text"
    level: Literal["debug", "info", "warning", "error"] = "info"
    file: Path | None = Field(None, description="besides standard error")
    max_mb: float = Field(10.0, ge=0.01, le=10_000, description="a file that would grow beyond is put aside")
    keep: int = Field(5, ge=1, le=1000, description="files that were put aside")


class ShadowSettings(Strict):
    """A candidate that scores what the line's own bundle has judged; off where ``bundle`` is not set."""

    bundle: Path | None = None
    recipe: int = Field(1, ge=1, le=65535, description="beside which recipe")
    share: float = Field(
        0.1,
        ge=0.001,
        le=1,
        description="of one core's time, at most, and of what the line leaves idle; what it has no time for is dropped",
    )
    engine: Literal["onnxruntime", "openvino"] = Field(
        "onnxruntime", description="never the card, which has no priorities"
    )
    precision: Precision = "fp32"


class EdgeSettings(Strict):
    """``edge.toml``. Paths are relative to the file's folder."""

    edge_id: Identifier
    bundle: Path
    mode: Literal["trial", "production"] = Field(
        "trial", description="production: released bundles alone run, signed by two people that `bundles.trusted` knows"
    )
    bundles: BundleSettings = Field(default_factory=BundleSettings)
    state_dir: Path = Path("state")
    engine: Literal["auto", "tensorrt", "tensorrt-rtx", "openvino", "onnxruntime"] = "auto"
    precision: Precision = Field("fp32", description="which of the bundle's graphs: fp32, fp16 (TensorRT), int8")
    threads: int = Field(1, ge=1, le=64, description="engine threads")
    batch: int = Field(1, ge=1, le=64, description="parts, of any camera, that at most go through one inference")
    batch_ms: float = Field(50.0, gt=0, le=60_000, description="longest inference of several parts; measured at start")
    deadline_ms: int = Field(1000, ge=10, description="capture to verdict; later is NOT_INSPECTED")
    hang_s: float = Field(20.0, ge=2, le=3600, description="no turn of a loop for so long: ended with code 70")
    start_s: float = Field(900.0, ge=2, le=86_400, description="the same from the start to the first turn")
    heartbeat_ms: int = Field(200, ge=100, description="the host's heartbeat to the line rests on it")
    images: Literal["flagged", "all", "none"] = Field(
        "flagged", description="which parts' pictures are sent; audited ones' besides those of flagged parts"
    )
    audit_share: float = Field(
        0.0, ge=0, le=1, description="of the parts that pass, drawn at random for an inspector to judge; perhaps 0.02"
    )
    host: HostLink = Field(default_factory=HostLink)
    spool: SpoolSettings = Field(default_factory=SpoolSettings)
    drift: DriftSettings = Field(default_factory=DriftSettings)
    metrics: MetricsSettings = Field(default_factory=MetricsSettings)
    log: LogSettings = Field(default_factory=LogSettings)
    preview: PreviewSettings = Field(default_factory=PreviewSettings)
    shadow: ShadowSettings = Field(default_factory=ShadowSettings)
    cameras: list[CameraSettings] = Field(min_length=1, max_length=64)
    groups: list[GroupSettings] = Field(default_factory=list, max_length=64)
    recipes: list[RecipeSettings] = Field(default_factory=list, max_length=256)

    @model_validator(mode="after")
    def _unique(self) -> EdgeSettings:
        ids = [camera.id for camera in self.cameras]
        if len(set(ids)) != len(ids):
            raise ValueError(f"two cameras share an id: {ids}")
        numbers = [recipe.number for recipe in self.recipes]
        if len(set(numbers)) != len(numbers):
            raise ValueError(f"two recipes share a number: {numbers}")
        if self.host.key is not None and self.host.key.name != f"{self.edge_id}{SECRET}":
            raise ValueError(
                f"host.key is {self.host.key.name!r} and edge_id {self.edge_id!r}: the host knows an edge by its key's "
                f"name, so the file must be {self.edge_id}{SECRET}"
            )
        for camera in self.cameras:
            if camera.code is not None and camera.code.budget_ms > self.deadline_ms:
                raise ValueError(
                    f"camera {camera.id!r}: code.budget_ms = {camera.code.budget_ms} is over deadline_ms = "
                    f"{self.deadline_ms}: every part whose code takes so long would be late"
                )
        if self.batch > 1 and self.batch_ms > self.deadline_ms:
            raise ValueError(
                f"batch_ms = {self.batch_ms:g} is over deadline_ms = {self.deadline_ms}: parts that are inferred "
                "together would all be late"
            )
        if self.audit_share > 0 and self.images == "none":
            raise ValueError(
                f"audit_share = {self.audit_share:g} and images = 'none': an inspector cannot judge a part without its "
                "picture; set images = 'flagged' (audited parts' pictures are then sent as well) or audit_share = 0"
            )
        if self.shadow.bundle is not None and self.shadow.recipe not in (1, *numbers):
            raise ValueError(f"[shadow] recipe = {self.shadow.recipe}: no such recipe; there are: {[1, *numbers]}")
        if self.mode == "production" and self.bundles.trusted is None:
            raise ValueError(
                "mode = 'production' needs to know whose signatures count: set trusted = 'signers' under [bundles] and "
                "fill it: flawline keys sign-trust NAME.sign --may validate (or release) --dir signers"
            )
        return self

    @model_validator(mode="after")
    def _grouped(self) -> EdgeSettings:
        triggers = {camera.id: camera.trigger for camera in self.cameras}
        members = [group.lead for group in self.groups]
        followers = [follower.camera for group in self.groups for follower in group.followers]
        for name in [*members, *followers]:
            if name not in triggers:
                raise ValueError(f"[[groups]] names camera {name!r}; there are: {', '.join(triggers)}")
            if [*members, *followers].count(name) > 1:
                raise ValueError(f"[[groups]] names camera {name!r} twice: a camera looks at the parts of one group")
        for name, trigger in triggers.items():
            if (trigger == "follow") != (name in followers):
                raise ValueError(
                    f"camera {name!r}: trigger = {trigger!r}; a camera is among the followers of a group under "
                    "[[groups]] if, and only if, its trigger is 'follow'"
                )
        return self

    def group_of(self, lead: str) -> list[FollowerSettings]:
        """The cameras that look at the parts of a leading camera with it."""
        return [follower for group in self.groups if group.lead == lead for follower in group.followers]

    def bundle_folders(self) -> dict[int, Path]:
        """Every recipe's number and the folder that is its bundle at this moment; 1 is ``bundle``."""
        return {number: path.resolve() for number, path in self.bundle_links().items()}

    def bundle_links(self) -> dict[int, Path]:
        """The same as configured: a link to a slot is not followed."""
        return {1: self.bundle} | {recipe.number: recipe.bundle for recipe in self.recipes}


def load_settings(path: Path) -> EdgeSettings:
    """Read ``edge.toml`` and make its paths absolute; raises ConfigError."""
    settings = load_toml(path, EdgeSettings)
    settings.bundle = path.parent.resolve() / settings.bundle  # a link to a slot may move while the edge runs
    for recipe in settings.recipes:
        recipe.bundle = path.parent.resolve() / recipe.bundle
    settings.state_dir = (path.parent / settings.state_dir).resolve()
    if settings.bundles.trusted is not None:
        settings.bundles.trusted = path.parent.resolve() / settings.bundles.trusted
    if settings.metrics.token is not None:
        settings.metrics.token = path.parent.resolve() / settings.metrics.token
    if settings.log.file is not None:
        settings.log.file = path.parent.resolve() / settings.log.file
    if settings.shadow.bundle is not None:
        settings.shadow.bundle = path.parent.resolve() / settings.shadow.bundle
    if settings.preview.keys is not None:
        settings.preview.keys = path.parent.resolve() / settings.preview.keys
    settings.host = settings.host.model_copy(
        update={
            # never resolved: a symbolic link in a key's place must be seen, and refused
            name: path.parent.resolve() / file
            for name in ("key", "server_key")
            if (file := getattr(settings.host, name)) is not None
        }
    )
    return settings
