"""The page of the survey's figures: everything between two marks in it is written from the JSON, by no hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.model_page import replaced, table
from contract.errors import ConfigError

BEGIN = "<!-- figures: written by benchmarks.survey -->"
Row = dict[str, Any]


def write_page(figures: Path, page: Path) -> None:
    """Replace what stands between the marks of ``page``; raises ConfigError where file or marks are missing."""
    try:
        text, found = page.read_text(), json.loads(figures.read_text())
    except OSError as error:
        raise ConfigError(f"{error.filename}: cannot be read ({error.strerror})") from error
    page.write_text(replaced(text, section(found), str(page), BEGIN))


def section(found: dict[str, Any]) -> str:
    """Markdown of one JSON file: a table for each data set, and what has no figures."""
    if not found["rows"] and not found["skipped"]:
        return "Nothing has been measured yet.\n"
    parts = [_of_data_set(name, found) for name in dict.fromkeys(row["dataset"] for row in found["rows"])]
    named = {entry["what"] for entry in found["skipped"]}
    missing = [f"- {entry['what']}: {entry['reason']}" for entry in found["skipped"]]
    missing += [
        f"- {name}: not measured yet"
        for name, trainings in found["trainings"].items()
        if not trainings["finished"] and name not in named
    ]
    if missing:
        parts.append("Without figures:\n\n" + "\n".join(sorted(missing)) + "\n")
    return "\n".join(parts)


def _of_data_set(name: str, found: dict[str, Any]) -> str:
    rows = [row for row in found["rows"] if row["dataset"] == name]
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    classes = dict.fromkeys((row["class"], row["class_name"]) for row in rows)
    body = [
        [label, *_line([row for row in rows if row["class"] == number], variants)] for number, label in sorted(classes)
    ]
    means = {row["variant"]: row for row in found["averages"] if row["dataset"] == name}
    if means and len(classes) > 1:
        body.append(["*mean of the classes*", "", *_ends(list(means.values()), variants)])
    lead = f"**{name}** ({found['notes'][name]}): {_budget(rows[0])}. {_partial(found['trainings'][name])}{_seen(rows)}"
    return f"{lead}\n\n{table(['anomalous', 'chance', *variants, 'seeds'], body)}"


def _line(rows: list[Row], variants: list[str]) -> list[str]:
    return [f"{rows[0]['chance']:.3f}", *_ends(rows, variants)]


def _ends(rows: list[Row], variants: list[str]) -> list[str]:
    by_name = {row["variant"]: row for row in rows}
    counts = sorted({len(row["seeds"]) for row in rows})
    shown = [
        f"{_value(by_name[name], 'clean')} / {_value(by_name[name], 'leaky')}" if name in by_name else "—"
        for name in variants
    ]
    return [*shown, " to ".join(str(count) for count in (counts[0], counts[-1])[: len(counts)])]


def _value(row: Row, protocol: str) -> str:
    half = row[f"{protocol}_half"]
    return f"{row[protocol]:.3f}" + ("" if half is None else f" ± {half:.3f}")


def _budget(row: Row) -> str:
    budget, counts = row["budget"], row["counts"]
    return (
        f"{budget['steps']} steps of {budget['batch']}; about {counts['fit']} rows to learn from, {counts['test']} to "
        "test"
    )


def _partial(trainings: dict[str, int]) -> str:
    finished, of = trainings["finished"], trainings["of"]
    return "" if finished == of else f"**Partial: {finished} of {of} trainings are finished.** "


def _seen(rows: list[Row]) -> str:
    share = max(row["seen_before"] for row in rows)
    refused = {
        (row["class_name"], row["variant"].partition("/")[0], entry["seed"]) for row in rows for entry in row["refused"]
    }
    twins = (
        f"Up to {100 * share:.0f} % of the normal test rows have an equal among those learnt from."
        if share >= 0.005
        else ""
    )
    collapsed = (
        f"{len(refused)} of the trainings ended with a network that draws everything alike, which `flawline train` "
        "refuses; their figures count all the same."
        if refused
        else ""
    )
    return f"{twins} {collapsed}".strip()
