"""The page of ``flawline acceptance``: self-contained HTML that prints on paper with lines to sign (after hop 5)."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1d2329; background: #fff; max-width: 52rem; margin: 2rem auto;
  padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin: 1.6rem 0 .3rem }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; vertical-align: top; padding: .2rem .9rem .2rem 0; border-bottom: 1px solid #d9dee3 }
th { font-weight: 600; width: 15rem } .n td, .n th { width: auto; font-variant-numeric: tabular-nums }
.verdict { border: 2px solid; padding: .6rem .9rem; font-size: 1.1rem; font-weight: 600 }
.sign td { height: 3.2rem; vertical-align: bottom }
@media print { body { margin: 0; font-size: 12px } h2 { break-after: avoid } table { break-inside: avoid } }
"""
SIGNATORIES = ("For the customer", "For the supplier")


def page(result: dict[str, Any]) -> str:
    """The whole page from what ``acceptance.examine`` found."""
    title = f"Acceptance: {result['bundle']['name']}"
    body = "".join(
        (
            _verdict(result),
            _section("What ran, and where", _ran(result)),
            _section("Bundle", _bundle(result["bundle"])),
            *(each["svg"] for each in result["bundle"].get("not_inspected", {}).values()),
            _section("Agreement", _parity(result["parity"])),
            _section("Speed", _speed(result["speed"], result["trtexec"])),
            _section("Soak", _soak(result["soak"])),
            _windows(result["soak"]),
            _signatures(),
        )
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head><body><h1>{escape(title)}</h1>{body}</body></html>\n"
    )


def _verdict(result: dict[str, Any]) -> str:
    if result["accepted"]:
        return '<p class="verdict">Every limit is kept.</p>'
    faults = "".join(f"<li>{escape(fault)}</li>" for fault in result["faults"])
    return f'<div class="verdict">Not accepted<ul>{faults}</ul></div>'


def _section(title: str, rows: Iterable[tuple[str, str]]) -> str:
    cells = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows)
    return f"<h2>{escape(title)}</h2><table>{cells}</table>"


def _ran(result: dict[str, Any]) -> Iterable[tuple[str, str]]:
    machine, engine, card = result["machine"], result["engine"], result["machine"]["graphics_card"]
    yield "Engine", engine["ran"] if engine else f"none: {result['asked']['engine']} could not be opened"
    if engine:
        yield "Opened in", f"{engine['opened_s']:.1f} s"
        yield "Input, N H W C", " x ".join(map(str, engine["input_shape"]))
    yield (
        "Graphics card",
        card
        if isinstance(card, str)
        else (
            f"{card['name']}, {card['memory_mb']} MB, compute capability {'.'.join(map(str, card['capability']))}, "
            f"driver {card['driver']}, CUDA {card['cuda']}"
        ),
    )
    yield "Processor", f"{machine['processor']}, {machine['cores']} cores, {machine['memory_mb']} MB"
    yield "Machine", f"{machine['host']}, {machine['system']}, Python {machine['python']}"
    yield "Load when it began", f"{machine['load_1min']:g}"
    yield "Packages", ", ".join(f"{name} {found}" for name, found in machine["packages"].items())
    yield "When", result["when"]


def _bundle(bundle: dict[str, Any]) -> Iterable[tuple[str, str]]:
    yield "Identity", f"{bundle['name']}, {bundle['model']}, {bundle['id']}"
    yield "Digest", bundle["digest"]
    yield "State", bundle["state"] + ("" if bundle["signed"] else ", signed by nobody")
    for step in bundle["signed"]:
        yield step["state"].capitalize(), f"by {step['who']} on {step['when']}, key {step['key']}"
    if bundle["signed"]:
        yield "Whose keys these are", "was not asked: flawline bundle verify BUNDLE --trusted DIR"
    yield "Content", bundle["content"]
    yield "Calibration", bundle["calibration"] or "none"
    masked = bundle.get("not_inspected", {})
    shares = [f"{100 * each['share']:.1f} % of view {view}" for view, each in masked.items()]
    yield "Not inspected", f"{', '.join(shares)}: red in the picture below" if shares else "nothing is masked"
    yield "Limits measured with", bundle["thresholds_measured_with"] or "nothing"


def _parity(parity: dict[str, Any] | None) -> Iterable[tuple[str, str]]:
    if parity is None:
        yield "Not measured", "see above"
        return
    yield "Golden images", f"{parity['golden_images']}, within {parity['tolerance']:g} relative of training"
    yield "Largest deviation from training", f"{parity['to_training']:.2e}"
    yield (
        f"From {parity['reference']}",
        (f"scores {parity['score_to_reference']:.2e} relative, maps {parity['map_to_reference']:.2e} of their highest"),
    )


def _speed(speed: dict[str, Any] | None, trtexec: dict[str, Any] | None) -> Iterable[tuple[str, str]]:
    if speed is None or trtexec is None:
        yield "Not measured", "see above"
        return
    latency = speed["latency_ms"]
    yield (
        "Latency of a part",
        (
            f"median {latency['median']:.2f} ms, p99 {latency['p99']:.2f} ms, longest {latency['max']:.2f} ms "
            f"({speed['parts']} parts of {speed['tiles_a_part']} tile(s), engine alone)"
        ),
    )
    yield "Throughput", f"{speed['parts_per_s']:.1f} parts/s, {speed['tiles_per_s']:.1f} tiles/s"
    if not trtexec["ran"]:
        yield "Against trtexec", f"not compared: {trtexec['why']}"
        return
    yield (
        "trtexec",
        (
            f"{trtexec['parts_per_s']:.1f} parts/s, median {trtexec['latency_median_ms']:.2f} ms, "
            f"p99 {trtexec['latency_p99_ms']:.2f} ms ({trtexec['command']})"
        ),
    )
    yield "Ours over trtexec's", f"{trtexec['ours_over_theirs']:.2f} of its throughput"


def _soak(soak: dict[str, Any] | None) -> Iterable[tuple[str, str]]:
    if soak is None:
        yield "Not done", "see above"
        return
    yield "Duration", f"{soak['minutes']:g} of {soak['asked_minutes']:g} minutes, {soak['parts']} parts"
    yield "Verdicts that changed", str(soak["verdicts_changed"])
    yield "Largest movement of a score", f"{soak['score_drift']:.2e} of the highest"


def _windows(soak: dict[str, Any] | None) -> str:
    if soak is None or not soak["windows"]:
        return ""
    header = ("tenth", "parts", "median ms", "p99 ms", "process MB", "card MB")
    rows = [
        (
            str(index + 1),
            str(window["parts"]),
            f"{window['latency_median_ms']:.2f}",
            f"{window['latency_p99_ms']:.2f}",
            *("-" if window[name] is None else f"{window[name]:.0f}" for name in ("memory_mb", "card_memory_mb")),
        )
        for index, window in enumerate(soak["windows"])
    ]
    head = "".join(f"<th>{name}</th>" for name in header)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<table class="n"><tr>{head}</tr>{body}</table>'


def _signatures() -> str:
    rows = "".join(f"<tr><th>{who}</th><td>Name</td><td>Date</td><td>Signature</td></tr>" for who in SIGNATORIES)
    return f'<h2>Signatures</h2><table class="sign">{rows}</table>'
