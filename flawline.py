"""The front door: the table of commands, each imported when used; nothing else."""

from __future__ import annotations

import importlib
import sys
from typing import NamedTuple


class Command(NamedTuple):
    """Where a command lives, the extra that brings what it needs, and its line in the help."""

    target: str
    extra: str
    summary: str


COMMANDS = {
    "demo": Command("edge_runtime.demo:app", "edge", "train, calibrate and run a whole line on this machine"),
    "train": Command("training.cli:app", "train", "good images -> bundle"),
    "data": Command("training.data_cli:app", "train", "look at a data folder before a model does"),
    "calibrate": Command("calibration.cli:app", "calibrate", "thresholds and evaluation of a bundle"),
    "bundle": Command("edge_runtime.bundle_cli:app", "edge", "show, validate, release, retire and verify a bundle"),
    "fixture": Command("edge_runtime.fixture_cli:app", "edge", "find parts by a mark and cut them out upright"),
    "inspect": Command("edge_runtime.inspect_cli:app", "edge", "verdict and picture for image files"),
    "edge": Command("edge_runtime.cli:app", "edge", "run the edge beside the line; build its plans; draw parts"),
    "host": Command("plugin.cli:app", "host", "run the host: store, line outputs, review pages"),
    "keys": Command("contract.keys_cli:app", "edge", "keys for the wire and for signing bundles"),
    "acceptance": Command(
        "edge_runtime.acceptance:app", "edge", "prove a bundle and an engine on this box, with a page to sign"
    ),
    "doctor": Command("edge_runtime.doctor:app", "edge", "check this machine and say the way out"),
}

USAGE = """Usage: flawline COMMAND [OPTIONS]

Learns from images of good parts, inspects every part on the line, and accounts for each.

Commands:
{commands}

Every command explains itself: flawline COMMAND --help
First steps:                   flawline demo
"""


def usage() -> str:
    """The help text: every command of the table, whether or not its packages are installed."""
    lines = (f"  {name:<10} {command.summary}" for name, command in COMMANDS.items())
    return USAGE.format(commands="\n".join(lines))


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 2 a mistake that is explained, 1 any other failure."""
    words = sys.argv[1:] if arguments is None else arguments
    if not words or words[0] in ("--help", "-h", "help"):
        sys.stdout.write(usage())
        return 0
    if words[0] == "--version":
        from contract.versions import installed

        sys.stdout.write(f"flawline {installed('flawline') or 'of a checkout that is not installed'}\n")
        return 0
    command = COMMANDS.get(words[0])
    if command is None:
        sys.stderr.write(f"flawline: no command {words[0]!r}; there are: {', '.join(COMMANDS)}\n")
        return 2
    return _run(words[0], command, words[1:])


def _run(name: str, command: Command, arguments: list[str]) -> int:
    module, _, attribute = command.target.partition(":")
    try:
        app = getattr(importlib.import_module(module), attribute)
        app(args=arguments, prog_name=f"flawline {name}")
    except SystemExit as stop:
        return _exit_code(stop)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == module.partition(".")[0]:
            raise
        sys.stderr.write(
            f"flawline {name}: the package {error.name!r} is not installed; "
            f"install what this command needs: pip install 'flawline[{command.extra}]'\n"
        )
        return 2
    except Exception as error:
        code = getattr(error, "exit_code", None)
        if code is None:
            raise
        sys.stderr.write(f"flawline {name}: {error}\n")
        return int(code)
    return 0


def _exit_code(stop: SystemExit) -> int:
    if stop.code is None or isinstance(stop.code, int):
        return stop.code or 0
    sys.stderr.write(f"{stop.code}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
