"""The edge's log: lines for people or one JSON object each, to standard error and, where asked, a file (every hop)."""

from __future__ import annotations

import json
import logging
import re
import traceback
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path

from contract.errors import ConfigError
from edge_runtime.settings import LogSettings

TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
MAX_EXCEPTION = 8000
FIELDS = ("camera", "part", "recipe", "engine")
_PLACE = re.compile(rf"(?:\b({'|'.join(FIELDS)}) )?%(?:\(\w+\))?[-#0 +]*[\d.*]*([sdrgfxiec%])")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (RFC 3339, UTC), level, logger, message; what it is about; the exception.

    What a line is about is read off its template: in "camera %s: frozen" the argument is the camera. ``extra`` with
    the same names does it as well.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update(subjects(record))
        if record.exc_info is not None and record.exc_info[0] is not None:
            text = "".join(traceback.format_exception(*record.exc_info))
            line["exception"] = text if len(text) <= MAX_EXCEPTION else f"... {text[-MAX_EXCEPTION:]}"
        return json.dumps(line, ensure_ascii=False, default=str)


def subjects(record: logging.LogRecord) -> dict[str, str | int]:
    """The ids of what a record speaks of, by the names in FIELDS."""
    found: dict[str, str | int] = {}
    arguments = record.args
    if isinstance(arguments, tuple) and isinstance(record.msg, str):
        places = [match[1] for match in _PLACE.finditer(record.msg) if match[2] != "%"]
        for name, value in zip(places, arguments, strict=False):
            if name and isinstance(value, str | int):
                found[name] = value
    for name in FIELDS:
        value = record.__dict__.get(name)
        if isinstance(value, str | int):
            found[name] = value
    return found


def set_up(settings: LogSettings) -> None:
    """Send every line where the settings say. Raises ConfigError where the file cannot be written."""
    formatter = JsonFormatter() if settings.format == "json" else logging.Formatter(TEXT)
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    if settings.file is not None:
        handlers.append(_file(settings.file, settings))
    for handler in handlers:
        handler.setFormatter(formatter)
    logging.basicConfig(level=settings.level.upper(), handlers=handlers, force=True)


def _file(path: Path, settings: LogSettings) -> RotatingFileHandler:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return RotatingFileHandler(
            path, maxBytes=int(settings.max_mb * 1e6), backupCount=settings.keep, encoding="utf-8"
        )
    except OSError as error:
        raise ConfigError(
            f"[log] file = {str(path)!r}: cannot be written ({error.strerror or error}); give another file, or leave "
            "it out: the lines go to standard error as well"
        ) from error
