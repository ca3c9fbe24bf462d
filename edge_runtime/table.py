"""Prints the account of a run for people (after hop 12, for the demo)."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from contract.event import Verdict
from contract.stats import Rate
from edge_runtime.account import Account

STAGES = ("trigger", "queue", "preprocess", "inference", "decision", "record", "send", "total")


def print_account(found: Account, latency_ms: dict[str, dict[str, float]], model: str, out: Path) -> None:
    """Two tables: what became of the parts, and how long each stage took."""
    console = Console()
    parts = Table(title=f"Every part accounted for ({model})", title_justify="left", show_header=False)
    parts.add_row("parts on the line", str(found.parts))
    for verdict in Verdict:
        parts.add_row(f"  {verdict}", str(found.verdicts.get(verdict, 0)))
    parts.add_row("missed (NOT_INSPECTED to the line)", str(found.missed))
    parts.add_row("in declared gaps", _count(found.gap_parts))
    parts.add_row("duplicates", _count(found.duplicates))
    parts.add_row("lost", str(found.lost), style="green" if found.lost == 0 else "bold red")
    parts.add_row("false rejects (good parts with REJECT)", _rate(found.false_reject))
    parts.add_row("good parts not inspected", _count(found.not_inspected_good))
    parts.add_row("escapes (defective parts with PASS)", _rate(found.escape))
    parts.add_row("defective parts not inspected", _count(found.not_inspected_defective))
    console.print(parts)
    stages = Table(title="Latency in ms, from the frame's capture", title_justify="left")
    for column in ("stage", "p50", "p95", "p99"):
        stages.add_column(column, justify="left" if column == "stage" else "right")
    for name in STAGES:
        if name in latency_ms:
            stages.add_row(name, *(f"{latency_ms[name][p]:.2f}" for p in ("p50", "p95", "p99")))
    console.print(stages)
    console.print(f"Written to {out / 'summary.json'}")


def _count(value: int | None) -> str:
    return "unknown" if value is None else str(value)


def _rate(value: Rate | None) -> str:
    return "unknown: no truth given" if value is None else value.text()
