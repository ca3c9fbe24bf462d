"""The container files, read as a container engine reads them: pinned, without privileges, with commands that exist."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import NamedTuple

import pytest
import typer

from flawline import COMMANDS

DEPLOY = Path(__file__).parents[2] / "deploy"
FILES = sorted(DEPLOY.glob("Containerfile.*"))
KNOWN = {
    "FROM", "COPY", "RUN", "LABEL", "ENV", "USER", "WORKDIR", "VOLUME", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK",
    "ENTRYPOINT", "CMD",
}  # fmt: skip

every_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.suffix.strip("."))


class Instruction(NamedTuple):
    """One line: its word and the rest."""

    word: str
    rest: str


def read(file: Path) -> list[Instruction]:
    text = re.sub(r"\\\n", " ", file.read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [Instruction(*line.split(maxsplit=1)) for line in lines]


def last(file: Path, word: str) -> str:
    """Of the final stage, which is what runs."""
    stage: list[Instruction] = []
    for instruction in read(file):
        stage = [instruction] if instruction.word == "FROM" else [*stage, instruction]
    return [instruction.rest for instruction in stage if instruction.word == word][-1]


def test_there_is_one_for_either_side() -> None:
    assert [file.name for file in FILES] == ["Containerfile.edge", "Containerfile.host"]


@every_file
def test_every_instruction_is_known_and_nothing_is_fetched(file: Path) -> None:
    instructions = read(file)
    assert {instruction.word for instruction in instructions} <= KNOWN
    for word, rest in instructions:
        if word == "FROM":
            assert re.fullmatch(r"[a-z.]+/library/python:3\.11\.\d+-slim-bookworm( AS [a-z]+)?", rest), rest
        if word == "RUN":
            assert isinstance(json.loads(rest), list), "no shell, no pipe, nothing from a network"
            assert not {"curl", "wget", "apt-get", "pip"} & set(json.loads(rest))


@every_file
def test_it_runs_without_privileges_and_its_commands_exist(file: Path) -> None:
    side = file.suffix.strip(".")
    user, group = last(file, "USER").split(":")
    assert int(user) > 0 and int(group) > 0
    assert last(file, "STOPSIGNAL") == "SIGTERM"
    assert json.loads(last(file, "VOLUME")) == ["/var/lib/flawline"]
    (program,) = json.loads(last(file, "ENTRYPOINT"))
    health = json.loads(last(file, "HEALTHCHECK").partition("CMD ")[2])
    assert health[0] == program == "/opt/flawline/bin/flawline"
    for words in (json.loads(last(file, "CMD")), health[1:]):
        module, _, attribute = COMMANDS[words[0]].target.partition(":")
        group_of = typer.main.get_command(getattr(importlib.import_module(module), attribute))
        command = group_of.commands[words[1]]  # type: ignore[attr-defined]
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= known
        assert f"/etc/flawline/{side}.toml" in words


@every_file
def test_the_way_to_run_it_gives_no_privilege(file: Path) -> None:
    text = file.read_text()
    assert "--privileged" not in text
    for option in ("--read-only", "--cap-drop all", "--security-opt no-new-privileges", "--stop-timeout"):
        assert option in text
    if file.suffix == ".edge":
        assert "--shm-size" in text and "--device" in text
