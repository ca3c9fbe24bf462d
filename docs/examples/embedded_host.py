"""A program that runs Flawline's host inside itself: python embedded_host.py host.toml

It prints a line for each part, says which are flagged, and ends with Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import signal
import sys
import threading

from plugin import Alarm, FlawlinePlugin, Part, Review


def say(text: str) -> None:
    """A line in one piece: callbacks are called at the same time, each on a thread of its own."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def on_result(part: Part) -> None:
    say(f"{part.line} {part.part_id}: {part.verdict}")


def on_flagged(part: Part) -> None:
    say(f"look at {part.part_id}: {part.reason}")


def on_alarm(alarm: Alarm) -> None:
    say(f"{alarm.source} {alarm.name} {alarm.state}: {alarm.text}")


def on_review(review: Review) -> None:
    say(f"{review.inspector} says {review.decision} of part {review.part}")


def main(config: str) -> None:
    asked_to_end = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: asked_to_end.set())
    plugin = FlawlinePlugin(config, on_result=on_result, on_flagged=on_flagged, on_alarm=on_alarm, on_review=on_review)
    with plugin:
        say(f"ready: edges connect to {plugin.endpoint}, pages are at {plugin.url}")
        asked_to_end.wait()
    say(f"stopped; calls left out: {sum(plugin.dropped.values())}")


if __name__ == "__main__":
    main(sys.argv[1])
