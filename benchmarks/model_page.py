"""The page of the models' figures: everything between two marks in it is written from the JSON, by no hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from contract.errors import ConfigError

BEGIN, END = "<!-- figures: written by benchmarks.models -->", "<!-- end of figures -->"
Row = dict[str, Any]


def _number(name: str, digits: int = 3) -> Callable[[Row], str]:
    return lambda row: "—" if row[name] is None else f"{row[name]:.{digits}f}"


def _share(name: str) -> Callable[[Row], str]:
    return lambda row: "—" if row[name] is None else f"{100 * row[name]:.1f} %"


def _auroc(row: Row) -> str:
    spread = "" if row["image_auroc_std"] is None else f" ± {row['image_auroc_std']:.3f}"
    return _number("image_auroc")(row) + spread


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
    "seeds": lambda row: str(row["seeds"]) + (f" ({len(row['failed'])} failed)" if row["failed"] else ""),
    "image AUROC": _auroc,
    "worst class": _worst_class,
    "image AP": _number("image_ap"),
    "AU-PRO": _number("aupro"),
    "AU-PRO 0.05": _number("aupro_005"),
    "pixel AUROC": _number("pixel_auroc"),
    "pixel AP": _number("pixel_ap"),
    "F1": _number("f1_max"),
    "escapes at 5 %": _share("escape_rate_at_frr05"),
    "false rejects": _share("false_reject_rate"),
    "escapes": _share("escape_rate"),
    "training, min": _number("train_minutes", 1),
    "ms": _number("latency_ms", 1),
    "parameters": lambda row: f"{row['parameters'] / 1e6:.2f} M",
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
    """Markdown of one JSON file: the table, the classes of each data set, and where it was measured."""
    rows = found["rows"]
    if not rows:
        return "Nothing has been measured yet.\n"
    parts = [table(list(COLUMNS), [[column(row) for column in COLUMNS.values()] for row in rows])]
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
        [label, str(rows[0]["classes"][label]["images"]), *(_class_auroc(row["classes"].get(label)) for row in rows)]
        for label in labels
    ]
    models = [f"`{row['model']}`" for row in rows]
    return f"{lead}\n\n{table(['class', 'images', *models], body)}"


def _class_auroc(found: Row | None) -> str:
    return "—" if found is None else _auroc(found)


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
