"""The log as JSON: one object a line, what it is about, and a file that cannot fill the disk."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from contract.errors import ConfigError
from edge_runtime.logs import MAX_EXCEPTION, JsonFormatter, set_up, subjects
from edge_runtime.settings import LogSettings

log = logging.getLogger("edge_runtime.test")


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers[:], root.level = handlers, level


def record(message: str, *arguments: object, **extra: object) -> logging.LogRecord:
    return log.makeRecord(log.name, logging.WARNING, "f", 1, message, arguments, None, extra=extra or None)


def test_one_object_a_line_with_its_time_and_exception() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError as error:
        made = record("part %s", "top-1")
        made.exc_info = (type(error), error, error.__traceback__)
    text = JsonFormatter().format(made)
    found = json.loads(text)
    assert "\n" not in text
    assert found["level"] == "warning" and found["logger"] == "edge_runtime.test"
    assert found["message"] == "part top-1" and found["part"] == "top-1"
    assert datetime.fromisoformat(found["time"]).utcoffset() is not None
    assert "ValueError: two\nlines" in found["exception"]


@pytest.mark.parametrize(
    ("message", "arguments", "expected"),
    [
        ("camera %s: %s", ("top", "frozen"), {"camera": "top"}),
        ("recipe %d, inspection is %s", (2, "on"), {"recipe": 2}),
        ("pictures of part %s", ("p-7",), {"part": "p-7"}),
        ("after %.1f s at 100%%, camera %s", (1.5, "left"), {"camera": "left"}),
        ("%s: part %d of the plan", ("x", 3), {"part": 3}),
        ("nothing", (), {}),
        ("camera %(a)s", ({"a": 1},), {}),
        ("camera %s", (None,), {}),
    ],
)
def test_what_a_line_is_about_is_read_off_its_template(
    message: str, arguments: tuple[object, ...], expected: dict[str, object]
) -> None:
    assert subjects(record(message, *arguments)) == expected


def test_extra_names_it_as_well() -> None:
    assert subjects(record("gone", camera="top", part="p")) == {"camera": "top", "part": "p"}


def test_an_endless_exception_is_cut() -> None:
    try:
        raise ValueError("x" * 50_000)
    except ValueError as error:
        made = record("failed")
        made.exc_info = (type(error), error, error.__traceback__)
    assert len(json.loads(JsonFormatter().format(made))["exception"]) < MAX_EXCEPTION + 10


@pytest.mark.parametrize("form", ["text", "json"])
def test_level_and_form(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    set_up(LogSettings(format=form, level="warning"))  # type: ignore[arg-type]
    log.info("not said")
    log.warning("camera %s: %s", "top", "frozen")
    (line,) = capsys.readouterr().err.splitlines()
    if form == "json":
        assert json.loads(line)["camera"] == "top"
    else:
        assert line.endswith("WARNING edge_runtime.test: camera top: frozen")


def test_a_file_is_put_aside_before_it_grows_too_large(tmp_path: Path) -> None:
    path = tmp_path / "log" / "edge.log"
    set_up(LogSettings(format="json", file=path, max_mb=0.01, keep=2))
    for number in range(400):
        log.warning("line %d of many", number)
    for handler in logging.getLogger().handlers:
        handler.flush()
    files = sorted(path.parent.iterdir())
    assert [file.name for file in files] == ["edge.log", "edge.log.1", "edge.log.2"]
    assert all(file.stat().st_size <= 10_000 for file in files)
    assert json.loads(path.read_text().splitlines()[-1])["message"] == "line 399 of many"


def test_a_file_that_cannot_be_written_is_said_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("no folder")
    with pytest.raises(ConfigError, match=r"\[log\] file = .*cannot be written"):
        set_up(LogSettings(file=tmp_path / "taken" / "edge.log"))
