"""Damaged bytes and senseless trees for the fuzz tests: drawn by hypothesis, the same in every run."""

from __future__ import annotations

import os
import struct
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

EXAMPLES = "FLAWLINE_FUZZ_EXAMPLES"
QUICK = int(os.environ.get(EXAMPLES, "12"))
"""Examples of each test in every run; the long campaigns ask for more."""

LONG = 2_000
_WORDS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0xFFFF, 0x10000, 0x00FFFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def bounded(examples: int) -> settings:
    """So many examples, always the same ones; no limit on how long one of them takes on a busy machine."""
    return settings(
        max_examples=examples, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """``whole`` cut off, or with bits flipped, bytes and words replaced, pieces left out, doubled or put in."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 5))):
        # Headers are short and decide most: half of all damage is done there.
        last = draw(st.sampled_from([max(0, min(len(data), 120) - 1), max(0, len(data) - 1)]))
        at = draw(st.integers(0, last))
        how = draw(st.sampled_from(("cut", "flip", "byte", "word", "drop", "double", "insert")))
        if how == "cut":
            del data[at:]
        elif how == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "byte" and data:
            data[at] = draw(st.integers(0, 255))
        elif how == "word":
            layout = draw(st.sampled_from(("<H", ">H", "<I", ">I")))
            word = draw(st.sampled_from(_WORDS)) & (0xFFFF if layout[1] == "H" else 0xFFFFFFFF)
            data[at : at + struct.calcsize(layout)] = struct.pack(layout, word)
        elif how == "drop":
            del data[at : at + draw(st.integers(1, 64))]
        elif how == "double":
            piece = data[at : at + draw(st.integers(1, 200))]
            data[at:at] = piece
        elif how == "insert":
            data[at:at] = draw(st.binary(max_size=40))
    return bytes(data)


def scalars() -> st.SearchStrategy[Any]:
    """Single values of every kind, sensible and not."""
    return st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 300),
        st.sampled_from([2**31, 2**63, -(2**63) - 1, 10**400]),
        st.none().map(lambda _: 16**5000),  # more digits than Python writes
        st.floats(),
        st.sampled_from([1e308, -0.0, 5e-324]),
        st.text(max_size=12),
        st.sampled_from(
            ["", "\0", "../../etc/passwd", "tcp://0.0.0.0:1", "usb://0", "\ud800", "a" * 10_000, "{}", "*"]
        ),
    )


def trees(names: list[str], depth: int = 3) -> st.SearchStrategy[Any]:
    """Values, lists and tables whose keys are known ``names`` or senseless ones."""
    keys = st.one_of(st.sampled_from(names), st.text(max_size=8))
    return st.recursive(
        scalars(),
        lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(keys, inner, max_size=5)),
        max_leaves=4 * depth,
    )


@st.composite
def bent(draw: st.DrawFn, whole: Any, names: list[str]) -> Any:
    """A tree that is right but for some places, where something else stands, is missing or is too much."""
    tree = _copy(whole)
    for _ in range(draw(st.integers(1, 3))):
        place = tree
        while isinstance(place, dict | list) and place:
            key = (
                draw(st.sampled_from(sorted(place)))
                if isinstance(place, dict)
                else draw(st.integers(0, len(place) - 1))
            )
            inner = place[key]
            if not isinstance(inner, dict | list) or not inner or draw(st.integers(0, 3)) == 0:
                _bend(draw, place, key, names)
                break
            place = inner
    return tree


def _bend(draw: st.DrawFn, place: Any, key: Any, names: list[str]) -> None:
    how = draw(st.sampled_from(("replace", "remove", "add")))
    if how == "replace":
        place[key] = draw(trees(names, 1))
    elif how == "remove":
        del place[key]
    elif isinstance(place, dict):
        place[draw(st.one_of(st.sampled_from(names), st.text(max_size=8)))] = draw(trees(names, 1))
    else:
        place.append(draw(trees(names, 1)))


def _copy(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _copy(value) for key, value in tree.items()}
    return [_copy(value) for value in tree] if isinstance(tree, list) else tree
