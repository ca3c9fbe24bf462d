"""A program that runs Flawline's host inside itself: python embedded_host.py host.toml

It prints a line for each part, says which are flagged, and ends with Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import signal
import sys
import threading

from plugin import Alarm, FlawlinePlugin, Part, Review


def on_result(part: Part) -> None:
    print(f"{part.line} {part.part_id}: {part.verdict}", flush=True)


def on_flagged(part: Part) -> None:
    print(f"look at {part.part_id}: {part.reason}", flush=True)


def on_alarm(alarm: Alarm) -> None:
    print(f"{alarm.source} {alarm.name} {alarm.state}: {alarm.text}", flush=True)


def on_review(review: Review) -> None:
    print(f"{review.inspector} says {review.decision} of part {review.part}", flush=True)


def main(config: str) -> None:
    asked_to_end = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: asked_to_end.set())
    plugin = FlawlinePlugin(config, on_result=on_result, on_flagged=on_flagged, on_alarm=on_alarm, on_review=on_review)
    with plugin:
        print(f"ready: edges connect to {plugin.endpoint}, pages are at {plugin.url}", flush=True)
        asked_to_end.wait()
    print(f"stopped; calls left out: {sum(plugin.dropped.values())}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
