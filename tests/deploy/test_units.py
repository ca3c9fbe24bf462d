"""The systemd units: known directives, commands that exist, limits that fit the product's own, a tight sandbox."""

from __future__ import annotations

import grp
import importlib
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import typer

from edge_runtime.engines.precedence import STEPS
from edge_runtime.settings import EdgeSettings
from flawline import COMMANDS
from plugin.settings import HostSettings
from tests.needs import lacking

DEPLOY = Path(__file__).parents[2] / "deploy"
UNITS = sorted(DEPLOY.glob("*.service"))
SETTINGS: dict[str, type[EdgeSettings] | type[HostSettings]] = {"edge": EdgeSettings, "host": HostSettings}
NEWER = {"RestartSteps", "RestartMaxDelaySec"}
"""Of systemd 254; older ones say that they pass over them."""

every_unit = pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)


def directives(unit: Path) -> list[tuple[str, str, str]]:
    """Section, name and value of each line."""
    section, found = "", []
    for line in unit.read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            name, equals, value = line.partition("=")
            assert equals, line
            found.append((section, name, value))
    return found


def values(unit: Path, name: str) -> list[str]:
    return [value for _, found, value in directives(unit) if found == name]


def seconds(unit: Path, name: str) -> float:
    (value,) = values(unit, name)
    return float(value)


def test_there_is_a_unit_for_either_side() -> None:
    assert [unit.stem for unit in UNITS] == ["flawline-edge", "flawline-host"]


@every_unit
def test_systemd_knows_every_directive_in_its_section(unit: Path) -> None:
    systemd = Path("/lib/systemd/systemd")
    if not systemd.exists():
        lacking("systemd is not installed (package systemd)")
    done = subprocess.run([str(systemd), "--dump-configuration-items"], capture_output=True, text=True, check=True)
    known, section = set(), ""
    for line in done.stdout.splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif "=" in line:
            known.add((section, line.partition("=")[0]))
    unknown = {(section, name) for section, name, _ in directives(unit) if name not in NEWER} - known
    assert not unknown


@every_unit
def test_systemd_verifies_it_and_finds_little_exposed(unit: Path, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        lacking("systemd-analyze is not installed (package systemd)")
    copy = tmp_path / unit.name
    copy.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", unit.read_text(), flags=re.MULTILINE))
    done = subprocess.run(["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, check=False)
    said = [line for line in done.stderr.splitlines() if str(copy) in line or unit.name in line]
    assert [line for line in said if not any(name in line for name in NEWER)] == []
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=25", str(copy)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-500:] + done.stderr


@every_unit
def test_its_command_is_one_of_ours(unit: Path) -> None:
    (line,) = values(unit, "ExecStart")
    program, name, sub, config, *options = shlex.split(line)
    assert program == "/opt/flawline/bin/flawline"
    module, _, attribute = COMMANDS[name].target.partition(":")
    group = typer.main.get_command(getattr(importlib.import_module(module), attribute))
    command = group.commands[sub]  # type: ignore[attr-defined]
    known = {option for parameter in command.params for option in parameter.opts}
    assert set(options) <= known
    assert config.startswith("/etc/flawline/")


@every_unit
def test_systemd_s_times_are_longer_than_the_product_s_own(unit: Path) -> None:
    fields = SETTINGS[unit.stem.removeprefix("flawline-")].model_fields
    assert seconds(unit, "WatchdogSec") > 1.5 * fields["hang_s"].default
    assert seconds(unit, "TimeoutStartSec") > fields["start_s"].default
    assert seconds(unit, "TimeoutStopSec") > 120, "the last verdicts, then the last events"
    assert values(unit, "Restart") == ["always"]
    assert values(unit, "StartLimitIntervalSec") == ["0"], "it is tried for ever"
    assert values(unit, "Type") == ["notify"]


@every_unit
def test_the_clock_may_be_read_and_what_outlives_a_start_is_kept(unit: Path) -> None:
    assert not values(unit, "ProtectClock"), "it refuses adjtimex altogether"
    filters = values(unit, "SystemCallFilter")
    assert "adjtimex" in filters[-1], "behind whatever takes it away"
    capabilities = values(unit, "CapabilityBoundingSet")[0].split()
    assert "CAP_SYS_TIME" not in capabilities
    assert not values(unit, "RemoveIPC"), "frames in shared memory outlive a start"
    limits = ("CPUWeight", "MemoryMax", "TasksMax", "LimitNOFILE")
    for name in ("ProtectSystem", "NoNewPrivileges", "StateDirectory", *limits):
        assert values(unit, name), name


def test_the_engine_s_threads_may_come_before_the_edge_s_others() -> None:
    assert values(DEPLOY / "flawline-edge.service", "LimitNICE") == [f"-{STEPS}"]


@every_unit
def test_zeromq_may_ask_for_the_network_s_interfaces(unit: Path) -> None:
    assert "AF_NETLINK" in values(unit, "RestrictAddressFamilies")[0].split(), "it aborts where it may not"


def test_the_edge_s_groups_are_debian_s() -> None:
    (names,) = values(DEPLOY / "flawline-edge.service", "SupplementaryGroups")
    if not Path("/etc/debian_version").exists():
        lacking("this is not Debian")
    known = {group.gr_name for group in grp.getgrall()}
    assert set(names.split()) - known <= {"render"}, "udev makes `render`"
