"""The host's configuration file as strict models (read at start, before hop 7)."""

from __future__ import annotations

import ipaddress
import re
from datetime import UTC, tzinfo
from pathlib import Path
from typing import Annotated, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, Field, field_validator, model_validator

from contract.config import Strict, load_toml
from contract.keys import is_loopback as is_loopback
from contract.keys import leaves_machine

Identifier = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")]


def _address(text: str) -> str:
    ipaddress.ip_address(text)
    return text


Address = Annotated[str, AfterValidator(_address)]


def _endpoint(value: str) -> str:
    if value.startswith("ipc://") and len(value) > len("ipc://"):
        return value
    match = re.fullmatch(r"tcp://(\[[0-9a-fA-F:]+\]|[^:/\[\]]+):(\d{1,5}|\*)", value)
    if match is None or (match[2] != "*" and int(match[2]) > 65535):
        raise ValueError("expected tcp://ADDRESS:PORT or ipc://PATH")
    return value


Endpoint = Annotated[str, AfterValidator(_endpoint)]
ClockTime = Annotated[str, Field(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$")]

EXAMPLE = """\
# The host: keeps every event, tells the line controller, serves the review pages.
# Paths are relative to this file.

state_dir = "host-state"
# keys = "keys"                 # folder of `flawline keys new host`: needed as soon as another machine connects

[events]
bind = "tcp://127.0.0.1:5701"   # edges connect here; "tcp://127.0.0.1:*" takes any free port

[control]
bind = "tcp://127.0.0.1:5702"   # and here, to be asked for another recipe, to stop and to start; leave out for none

[http]
host = "127.0.0.1"              # any other address needs sign-in: flawline host user add host.toml NAME
port = 8765                     # 0 takes any free port and writes it to host-state/http.json
# sign_in = true                # ask for it on 127.0.0.1 as well
# names = ["host.plant.local"]  # other names by which browsers call this host
# certificate = "host.pem"      # TLS: the certificate with its chain, PEM
# key = "host.key"              # its key, PEM, file mode 0600
# tls = "proxy"                 # instead of a certificate, where a reverse proxy in front ends TLS
# idle_minutes = 30             # a session without a request ends; inspector_idle_minutes = 480 for a station's shift
# session_hours = 12            # and every session ends after this
# patience_s = 10               # whoever connects and does not finish a request by then is closed

[review]
# classes = ["scratch", "dent"] # of defects, at most nine: an inspector gives one by its digit
# hold_s = 60                   # a part that an inspector has open and does not touch is free for others after this
# blind_share = 0.5             # where edges audit passed parts, so many flagged ones are shown as blindly as those

[store]
# url = "postgresql://flawline@db.plant.local/flawline"   # instead of SQLite in state_dir (docs/store.md)
# password_file = "store.password"                        # or FLAWLINE_STORE_PASSWORD in the environment
# pictures = "s3://bucket/flawline"                       # pictures in S3-compatible storage; pictures_endpoint = "https://..."
# pictures_credentials = "s3.secret"                      # key id and secret, a line each; or the environment's

[retention]                     # of pictures and maps; rows are kept (docs/store.md)
# pass_days = 30                # not_inspected_days, waiting_days (flagged, not judged), reviewed_days: the same
# free_gb = 10                  # with less free the oldest pictures go, those of passed parts first
[quality]
# second_share = 0.03           # of decided parts that another inspector judges again, blindly; with sign-in
# known_share = 0.02            # how often an inspector is shown a part whose truth is known instead of the next one
# arbiters = ["eve"]            # who settles what two inspectors disagree about; engineers where nobody is named
# shifts = ["early 06:00", "late 14:00", "night 22:00"]
# timezone = "Europe/Berlin"    # of the shifts and of the figures' days

[[lines]]
id = "line-1"
edges = []                      # edge ids; an edge that no line names belongs to the first line
deadline_ms = 1000              # capture to output; without a verdict by then the part is NOT_INSPECTED
# gate_ms = 3000                # where a sensor behind the gate confirms each reject: by then, or the line is to stop
# rejects_in_a_row = 5          # so many ask for a stop, 0 never; not_inspected_in_a_row = 5 likewise
# shifts = ["06:00", "14:00"]   # local times at which master parts are due, where there are any (docs/challenge.md)

[[connectors]]
url = "loop://?path=outputs.jsonl"   # writes outputs to a file; a stand-in for a line controller
# url = "modbus://127.0.0.1:1502"    # a Modbus TCP server for a line controller (docs/modbus.md)
# url = "opcua://127.0.0.1:4840?folder=opcua"   # an OPC UA server for SCADA and MES (docs/opcua.md)
"""


class EventSettings(Strict):
    """Where edges connect and how much may wait for the disk."""

    bind: Endpoint = Field("tcp://127.0.0.1:5701", description="ZeroMQ endpoint; port * takes any free one")
    backlog_mb: int = Field(256, ge=1, le=65536, description="decoded events that wait for their commit")


class ControlSettings(Strict):
    """Where edges connect to be asked: recipe, start and stop."""

    bind: Endpoint = Field("tcp://127.0.0.1:5702", description="ZeroMQ endpoint; port * takes any free one")


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$")]
PLAIN = "none-passwords-in-clear"


class HttpSettings(Strict):
    """Where the review pages are served, to whom, and how they are kept from others."""

    host: str = "127.0.0.1"
    port: int = Field(8765, ge=0, le=65535, description="0 takes any free port")
    names: list[Name] = Field(default_factory=list, max_length=64, description="further names that browsers use")
    certificate: Path | None = Field(None, description="PEM, the host's certificate first")
    key: Path | None = Field(None, description="PEM, mode 0600")
    tls: Literal["certificate", "proxy", "none-passwords-in-clear"] = "certificate"
    proxies: list[Address] = Field(
        default_factory=lambda: ["127.0.0.1", "::1"], max_length=64, description='believed with tls = "proxy"'
    )
    sign_in: bool = Field(False, description="ask for it on loopback as well")
    idle_minutes: int = Field(30, ge=1, le=1440)
    inspector_idle_minutes: int = Field(30, ge=1, le=1440, description="at a station perhaps a shift, 480")
    session_hours: int = Field(12, ge=1, le=24)
    connections: int = Field(256, ge=16, le=16384, description="open at once; fewer where the system allows few files")
    connections_per_address: int = Field(64, ge=8, le=16384, description="of them; a proxy's are not counted so")
    patience_s: float = Field(10.0, ge=0.5, le=300.0, description="for a TLS handshake and a request's head, its body")

    @model_validator(mode="after")
    def _protected(self) -> HttpSettings:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("`certificate` and `key` belong together; one of them is missing")
        if not is_loopback(self.host) and self.certificate is None and self.tls == "certificate":
            raise ValueError(
                f"{self.host} can be reached from other machines, and passwords would travel in clear: set "
                '`certificate` and `key`; or tls = "proxy" where a reverse proxy in front ends TLS; or, where the '
                f'network is trusted with passwords, tls = "{PLAIN}"'
            )
        return self

    @property
    def needs_sign_in(self) -> bool:
        """Whoever is not at this machine signs in; a proxy or a further name brings others to loopback too."""
        return self.sign_in or not is_loopback(self.host) or self.tls == "proxy" or bool(self.names)

    @property
    def reached_as(self) -> tuple[str, ...]:
        """What browsers may call the host, beside loopback's names and the address that they connected to."""
        return tuple(self.names) if self.host in ("0.0.0.0", "::") else (self.host, *self.names)  # noqa: S104

    @property
    def secure(self) -> bool:
        """Whether browsers see https."""
        return self.certificate is not None or self.tls == "proxy"


DefectClass = Annotated[str, Field(pattern=r"^\S(.{0,38}\S)?$")]


class ReviewSettings(Strict):
    """How parts are shown to inspectors."""

    blind_share: float = Field(
        0.5, ge=0, le=1, description="of flagged parts shown without verdict and map, where passes are audited"
    )
    classes: list[DefectClass] = Field(
        default_factory=list, max_length=9, description="of defects, by the digits 1 to 9 in this order"
    )
    hold_s: float = Field(
        60.0, ge=5, le=3600, description="a part that is open and not touched is free for others then"
    )

    @field_validator("classes")
    @classmethod
    def _once(cls, classes: list[str]) -> list[str]:
        if twice := sorted({name for name in classes if classes.count(name) > 1}):
            raise ValueError(f"stands there twice: {twice}")
        return classes


class QualitySettings(Strict):
    """How inspectors and the inspection are measured, and how the figures divide the day."""

    second_share: float = Field(0.03, ge=0, le=1, description="of decided parts, judged again by another; 0: none")
    known_share: float = Field(0.02, ge=0, le=0.5, description="known parts for each verdict; 0: none")
    arbiters: list[str] = Field(default_factory=list, max_length=64, description="accounts; none: every engineer")
    shifts: list[Annotated[str, Field(pattern=r"^\S{1,20} ([01]\d|2[0-3]):(00|15|30|45)$")]] = Field(
        default_factory=list, max_length=6, description="name and begin, on a quarter of an hour, in the day's order"
    )
    timezone: str = Field("UTC", max_length=64, description="a name of the tz database")

    @model_validator(mode="after")
    def _sensible(self) -> QualitySettings:
        begins, names = [begin for _, begin in self.parted()], [name for name, _ in self.parted()]
        if begins != sorted(set(begins)) or len(set(names)) != len(names):
            raise ValueError(f"`shifts` must begin one after the other, each with a name of its own: {self.shifts}")
        try:
            _ = self.zone
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise ValueError(f"`timezone`: this system knows no {self.timezone!r}") from error
        return self

    @property
    def zone(self) -> tzinfo:
        """The time zone; UTC also where a small system has no tz database."""
        return UTC if self.timezone == "UTC" else ZoneInfo(self.timezone)

    def parted(self) -> list[tuple[str, int]]:
        """(name, minutes since midnight) of each shift."""
        found = []
        for each in self.shifts:
            name, _, begin = each.rpartition(" ")
            found.append((name, 60 * int(begin[:2]) + int(begin[3:])))
        return found


class LineSettings(Strict):
    """One line: which edges watch it and until when a verdict can still move its gate."""

    id: Identifier
    edges: list[Identifier] = Field(default_factory=list, max_length=256)
    deadline_ms: int = Field(1000, ge=10, le=3_600_000, description="capture to output")
    silence_ms: int = Field(700, ge=50, le=60_000, description="an edge silent for longer stops the line's heartbeat")
    frame_age_ms: int = Field(1000, ge=50, le=600_000, description="a camera without a frame for longer stops it too")
    trigger_offset_ms: int = Field(
        0, ge=-60_000, le=60_000, description="from the line controller's count of a part to its capture"
    )
    trigger_tolerance_ms: int = Field(
        50, ge=1, le=60_000, description="how far both may differ from that; less than half the time between two parts"
    )
    gate_ms: int | None = Field(
        None, ge=10, le=3_600_000, description="capture to the confirmation of a reject; none: no sensor tells of it"
    )
    rejects_in_a_row: int = Field(5, ge=0, le=1000, description="so many ask for a stop; 0: never")
    not_inspected_in_a_row: int = Field(5, ge=0, le=1000, description="so many ask for a stop; 0: never")
    shifts: list[ClockTime] = Field(
        default_factory=list, max_length=24, description="local times at which masters are due, for example 06:00"
    )

    @model_validator(mode="after")
    def _gate_is_behind(self) -> LineSettings:
        if self.gate_ms is not None and self.gate_ms <= self.deadline_ms:
            raise ValueError(
                f"`gate_ms` is {self.gate_ms} and `deadline_ms` {self.deadline_ms}: a part has its code before its gate"
            )
        return self


class ConnectorSettings(Strict):
    """One way to a line controller; ``lines`` empty means every line."""

    url: str = Field(pattern=r"^[a-z][a-z0-9+.-]*://", max_length=500)
    lines: list[Identifier] = Field(default_factory=list, max_length=64)
    queue: int = Field(4096, ge=1, le=65536, description="outputs that may wait for this connector")


def _postgresql(value: str) -> str:
    if not re.match(r"postgresql://[^/]*/.", value):
        raise ValueError("expected postgresql://USER@ADDRESS:PORT/DATABASE")
    if re.match(r"postgresql://[^/@]*:[^/@]*@", value) or "password=" in value:
        raise ValueError(
            "a password does not belong into this file: set store.password_file, or FLAWLINE_STORE_PASSWORD in the "
            "environment"
        )
    return value


class StoreSettings(Strict):
    """Where events, verdicts and reviews are kept; SQLite in the state folder where no URL is given."""

    url: Annotated[str, Field(max_length=500), AfterValidator(_postgresql)] | None = None
    password_file: Path | None = Field(None, description="its first line; mode 0600")
    pictures: str | None = Field(
        None, pattern=r"^s3://[a-z0-9][a-z0-9.-]*(/[A-Za-z0-9._-]+)*/?$", description="a bucket and a folder in it"
    )
    pictures_endpoint: str | None = Field(None, pattern=r"^https?://[^@]+$", description="of storage that is not AWS")
    pictures_credentials: Path | None = Field(None, description="key id and secret, a line each; mode 0600")


class RetentionSettings(Strict):
    """How long pictures are kept, by what became of their part; nothing is removed where nothing is said."""

    pass_days: float | None = Field(None, gt=0, le=36500, description="of parts that passed and were not drawn")
    not_inspected_days: float | None = Field(None, gt=0, le=36500)
    waiting_days: float | None = Field(None, gt=0, le=36500, description="flagged or audited, and judged by nobody")
    reviewed_days: float | None = Field(None, gt=0, le=36500, description="judged by an inspector")
    free_gb: float = Field(0.0, ge=0, le=1e6, description="below it the oldest pictures go, passed parts' first")

    def days(self) -> dict[str, float]:
        """Class and days, of those that are said."""
        said = {name: getattr(self, f"{name}_days") for name in ("pass", "not_inspected", "waiting", "reviewed")}
        return {name: days for name, days in said.items() if days is not None}


class HostSettings(Strict):
    """``host.toml``. Paths are relative to the file's folder."""

    state_dir: Path = Path("host-state")
    hang_s: float = Field(30.0, ge=2, le=3600, description="no turn of a loop for so long: ended with code 70")
    start_s: float = Field(900.0, ge=2, le=86_400, description="the same from the start to the first turn")
    keys: Path | None = Field(None, description="key folder; needed where another machine can connect")
    events: EventSettings = Field(default_factory=EventSettings)
    control: ControlSettings | None = None
    http: HttpSettings = Field(default_factory=HttpSettings)
    review: ReviewSettings = Field(default_factory=ReviewSettings)
    store: StoreSettings = Field(default_factory=StoreSettings)
    retention: RetentionSettings = Field(default_factory=RetentionSettings)
    quality: QualitySettings = Field(default_factory=QualitySettings)
    lines: list[LineSettings] = Field(default_factory=lambda: [LineSettings(id="line-1")], min_length=1, max_length=64)
    connectors: list[ConnectorSettings] = Field(default_factory=list, max_length=64)

    @model_validator(mode="after")
    def _consistent(self) -> HostSettings:
        self._refuse_open_doors()
        ids = [line.id for line in self.lines]
        if len(set(ids)) != len(ids):
            raise ValueError(f"two lines share an id: {ids}")
        edges = [edge for line in self.lines for edge in line.edges]
        if len(set(edges)) != len(edges):
            raise ValueError(
                f"an edge belongs to two lines: {sorted({edge for edge in edges if edges.count(edge) > 1})}"
            )
        if self.store.pictures is not None and self.retention.free_gb:
            raise ValueError(
                "`retention.free_gb` is of pictures on this disk, and `store.pictures` puts them elsewhere"
            )
        for connector in self.connectors:
            if unknown := sorted(set(connector.lines) - set(ids)):
                raise ValueError(
                    f"connector {connector.url!r} names lines that do not exist: {unknown}; there are {ids}"
                )
        return self

    def _refuse_open_doors(self) -> None:
        for name, bind in self.binds().items():
            if self.keys is None and leaves_machine(bind):
                raise ValueError(
                    f"`{name}.bind`: {bind} can be reached from other machines, and without keys it is neither "
                    'encrypted nor authenticated: run `flawline keys new host` and set keys = "keys" at the top of the '
                    "file, or bind to 127.0.0.1"
                )

    def binds(self) -> dict[str, str]:
        """Section and endpoint of every ZeroMQ socket that edges connect to."""
        control = {} if self.control is None else {"control": self.control.bind}
        return {"events": self.events.bind} | control

    def line_of(self, edge_id: str) -> LineSettings:
        """The line that an edge watches; the first line where none names it."""
        return next((line for line in self.lines if edge_id in line.edges), self.lines[0])


def load_settings(path: Path) -> HostSettings:
    """Read ``host.toml`` and make its paths absolute; raises ConfigError."""
    settings = load_toml(path, HostSettings)
    settings.state_dir = (path.parent / settings.state_dir).resolve()
    http = settings.http
    if http.certificate is not None and http.key is not None:
        http.certificate, http.key = path.parent / http.certificate, path.parent / http.key
    for name in ("password_file", "pictures_credentials"):
        secret = getattr(settings.store, name)
        if secret is not None:
            setattr(settings.store, name, path.parent / secret)
    if settings.keys is not None:
        settings.keys = (path.parent / settings.keys).resolve()
    return settings
