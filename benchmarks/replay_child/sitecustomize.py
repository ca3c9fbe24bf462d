"""Loaded by every Python process whose path begins here: makes the benchmarks' camera known."""

from benchmarks.replay import register

register()
