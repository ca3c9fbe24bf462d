"""The page of the models' figures: everything between two marks in it is written from the JSON, by no hand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common import half_interval, half_of
from contract.errors import ConfigError

BEGIN, END = "<!-- figures: written by benchmarks.models -->", "<!-- end of figures -->"
Row = dict[str, Any]


def _number(name: str, digits: int = 3) -> Callable[[Row], str]:
    return lambda row: "—" if row[name] is None else f"{row[name]:.{digits}f}"


def _mean(name: str) -> Callable[[Row], str]:
    return lambda row: "—" if row[name] is None else f"{row[name]:.3f}" + _spread(_half(row, name), 3)


def _share(name: str) -> Callable[[Row], str]:
    def column(row: Row) -> str:
        if row[name] is None:
            return "—"
        half = _half(row, name)
        return f"{100 * row[name]:.1f}" + _spread(None if half is None else 100 * half, 1) + " %"

    return column


def _spread(half: float | None, digits: int) -> str:
    return "" if half is None else f" ± {half:.{digits}f}"


def _half(row: Row, name: str) -> float | None:
    """Half of the 95 % interval of a row's mean over its seeds."""
    return half_interval([seed[name] for seed in row["per_seed"]])


def _tiles(row: Row) -> list[int] | None:
    """Rows and columns that a part is cut into; None where an older row was left to choose and does not tell."""
    asked = row["settings"]["tiles"]
    return row.get("tiles") or (None if asked == "auto" else asked)


def _cut(row: Row) -> str:
    tiles = _tiles(row)
    return "auto" if tiles is None else f"{tiles[0]}x{tiles[1]}"


def _latency(row: Row) -> str:
    count = math.prod(_tiles(row) or [1])
    return _number("latency_ms", 1)(row) + (f" (x {count})" if count > 1 and row["latency_ms"] is not None else "")


def _worst_class(row: Row) -> str:
    known = {label: value for label, value in row["per_class"].items() if value is not None}
    if not known:
        return "—"
    label = min(known, key=lambda name: known[name])
    return f"{known[label]:.3f} ({label})"


COLUMNS: dict[str, Callable[[Row], str]] = {
    "data set": lambda row: str(row["dataset"]),
    "model": lambda row: f"`{row['model']}`",
    "size": lambda row: str(row["settings"]["size"]),
    "tiles": _cut,
    "seeds": lambda row: str(row["seeds"]) + (f" ({len(row['failed'])} failed)" if row["failed"] else ""),
    "image AUROC": _mean("image_auroc"),
    "worst class": _worst_class,
    "image AP": _mean("image_ap"),
    "F1": _mean("f1_max"),
    "escapes at 5 %": _share("escape_rate_at_frr05"),
    "false rejects": _share("false_reject_rate"),
    "escapes": _share("escape_rate"),
    "training, min": _number("train_minutes", 1),
    "ms": _latency,
    "parameters": lambda row: f"{row['parameters'] / 1e6:.2f} M",
}
OF_MAPS: dict[str, Callable[[Row], str]] = {
    **{name: COLUMNS[name] for name in ("data set", "model", "size", "tiles")},
    "AU-PRO": _mean("aupro"),
    "AU-PRO 0.05": _mean("aupro_005"),
    "pixel AUROC": _mean("pixel_auroc"),
    "pixel AP": _mean("pixel_ap"),
}


def write_page(figures: Path, page: Path) -> None:
    """Replace what stands between the marks of ``page``; raises ConfigError where file or marks are missing."""
    try:
        text, found = page.read_text(), json.loads(figures.read_text())
    except OSError as error:
        raise ConfigError(f"{error.filename}: cannot be read ({error.strerror})") from error
    page.write_text(replaced(text, section(found), str(page)))


def replaced(text: str, figures: str, name: str, mark: str = BEGIN) -> str:
    """``text`` with other figures between its marks."""
    before, begin, rest = text.partition(mark)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ConfigError(f"{name}: has no place for figures; expected the lines {mark} and {END}")
    return f"{before}{mark}\n\n{figures}\n{END}{after}"


def section(found: dict[str, Any]) -> str:
    """Markdown of one JSON file: the tables, the classes of each data set, and where it was measured."""
    rows = found["rows"]
    if not rows:
        return "Nothing has been measured yet.\n"
    tables = [
        table(list(columns), [[column(row) for column in columns.values()] for row in rows])
        for columns in (COLUMNS, OF_MAPS)
    ]
    parts = [tables[0], f"The maps of the same trainings:\n\n{tables[1]}"]
    for dataset in dict.fromkeys(row["dataset"] for row in rows):
        parts.append(classes(dataset, [row for row in rows if row["dataset"] == dataset]))
    parts.append("\n".join(sorted({_origin(row) for row in rows})) + "\n")
    failed = {f"- {entry['what']}: {entry['reason']}" for row in rows for entry in row["failed"]}
    failed |= {f"- {entry['what']}: {entry['reason']}" for entry in found["skipped"]}
    if failed:
        parts.append("Without figures:\n\n" + "\n".join(sorted(failed)) + "\n")
    return "\n".join(parts)


def classes(dataset: str, rows: list[Row]) -> str:
    """Image AUROC of every class of defects, one column a model."""
    counts = rows[0]["counts"]
    lead = (
        f"`{dataset}`, image AUROC of each class against all good test images ({counts['fit_images']} images to learn "
        f"from, {counts['holdout_images']} to calibrate, {counts['good']} good and {counts['defective']} defective to "
        "test):"
    )
    labels = sorted({label for row in rows for label in row["classes"]})
    body = [
        [label, str(rows[0]["classes"][label]["images"]), *(_class_auroc(row, label) for row in rows)]
        for label in labels
    ]
    models = [f"`{row['model']}`" for row in rows]
    return f"{lead}\n\n{table(['class', 'images', *models], body)}"


def _class_auroc(row: Row, label: str) -> str:
    found = row["classes"].get(label)
    if found is None:
        return "—"
    spread = found["image_auroc_std"]
    return _number("image_auroc")(found) + _spread(None if spread is None else half_of(spread, row["seeds"]), 3)


def _origin(row: Row) -> str:
    where = "; ".join(row["trained_on"])
    latency = f"latency on {row['machine']}, load {row['latency']['load_1min']:.1f}; "
    return (
        f"- `{row['model']}` on `{row['dataset']}`: trained on {where}, at {', '.join(row['source'])}; "
        f"{'' if row['latency_ms'] is None else latency}{row['date']}"
    )


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
