"""Every text of the pages and their scripts stands in the catalogue, in every language, and nothing else does."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from string import Formatter
from typing import get_args

import pytest

from contract.event import Drift, DriftMeasure, DriftTest
from plugin.connectors.base import Challenge, GateOutcome, StopKind
from plugin.lines import HOST, THE_LINE
from plugin.review.line_api import KINDS
from plugin.review.pages import STAGES, templates
from plugin.review.texts import LANGUAGES, Texts, catalogue
from plugin.service import CONTROLLER

FOLDER = Path(__file__).resolve().parents[2] / "plugin" / "review"
TEMPLATES = sorted(FOLDER.glob("templates/*.html"))
SCRIPTS = sorted(FOLDER.glob("static/*.js"))
SPOKEN = ("title", "aria-label", "placeholder", "alt", "value", "content")
SIGNS = re.compile(r"[A-Za-z\u4e00-\u9fff]{2,}")
NO_TEXT = {"Flawline", "EN", "width=device-width, initial-scale=1", "csrf", "light", "dark"}
"""The product's name, the sign of the language, and what browsers read, not people."""

INVENTED = {"verdict", "said", "outcome", "state", "role", "stage", "ago", "look", "help", "key", "part", "signin"}
"""Sections that templates ask by a name that comes at run time."""

RECORDED = {"stop", "gate", "challenge", "happening", "who", "drift_test", "drift_what", "drift_suspect"}
"""The same, where a line's record is what names it."""


def used(source: str) -> set[str]:
    """Keys that a template, a page's code or a script names as they are."""
    return set(re.findall(r"""\bt(?:exts)?(?:_of\(request\))?\(\s*"([a-z_]+\.\w+)["]\s*[,)]""", source)) | {
        f"js.{key}" for key in re.findall(r"""\bsay\("(\w+)["]""", source)
    }


def computed(source: str) -> set[str]:
    """Sections that are asked for a name that is only known at run time."""
    return set(re.findall(r'\bt\("([a-z_]+)\." ~', source)) | set(re.findall(r'\bt\.among\("([a-z_]+)"', source))


def sources() -> str:
    return "\n".join(file.read_text() for file in (*TEMPLATES, *SCRIPTS, *FOLDER.glob("*.py")))


def test_every_language_has_every_text() -> None:
    for key, texts in catalogue().items():
        assert list(texts) == list(LANGUAGES), key
        places = [{name for _, name, _, _ in Formatter().parse(text) if name} for text in texts.values()]
        assert all(text.strip() for text in texts.values()) and places[0] == places[1], key
    chinese = [texts["zh"] for texts in catalogue().values() if SIGNS.search(texts["en"])]
    assert sum(bool(re.search(r"[\u4e00-\u9fff]", text)) for text in chinese) > 0.97 * len(chinese)


def test_what_is_asked_for_is_there() -> None:
    assert used(sources()) - set(catalogue()) == set()
    assert computed(sources()) - INVENTED - RECORDED == set()
    stages = {f"stage.{name}" for _, name in STAGES} | {"stage.sent"}
    assert {key for key in catalogue() if key.startswith("stage.")} == stages


def test_whatever_a_line_records_has_its_text() -> None:
    recorded = {
        "stop": set(get_args(StopKind)),
        "gate": {*get_args(GateOutcome), "unknown"},  # what was on its way to the gate at a restart
        "challenge": set(get_args(Challenge)),
        "happening": set(KINDS),
        "who": {HOST, THE_LINE, CONTROLLER},
        "drift_test": set(get_args(DriftTest.model_fields["name"].annotation)),
        "drift_what": set(get_args(DriftMeasure.model_fields["what"].annotation)),
        "drift_suspect": {*get_args(get_args(Drift.model_fields["suspect"].annotation)[0]), "unknown"},
    }
    keys = [key.partition(".") for key in catalogue()]
    assert {section: {name for own, _, name in keys if own == section} for section in RECORDED} == recorded


def test_a_reason_is_told_in_the_language_of_the_page_with_what_it_names() -> None:
    zh = Texts("zh")
    two = "good was read as REJECT, expected PASS; a part was counted that no edge announced"
    assert zh.because(two) == "good 判读为 REJECT，应为 PASS; 有一件已计数，但没有边缘设备通报"
    late = "no. 7 (bracket (a)) was not seen behind the gate in time"
    assert zh.because(late) == "编号 7（bracket (a)）未按时在闸口后出现"
    for text in ("scores drift", "", "{0} {who.__class__}", "a shift began at "):
        assert zh.because(text) == text, "what somebody typed"
    assert Texts("en").because(two) == two
    for key, texts in catalogue().items():
        if key.startswith("because."):
            names = [name for _, name, _, _ in Formatter().parse(texts["en"]) if name]
            filled = {name: f"<{n}>" for n, name in enumerate(names)}
            assert zh.because(texts["en"].format(**filled)) == texts["zh"].format(**filled)


def test_nothing_is_there_that_nobody_asks_for() -> None:
    text = sources()
    asked = used(text)
    # Names that a template spells out beside the section that it asks: help's groups and keys, labels of a list.
    spelled = {f"{section}.{name}" for section in computed(text) for name in re.findall(r'"(\w+)"', text)}
    # As edges, connectors and accounts say, and the reasons that a line recorded.
    whole = {"verdict", "said", "outcome", "state", "role", "because", *RECORDED}
    roles = set(re.findall(r"say\((?:role|kinds\[i\]|\{)", text))
    assert roles  # the viewer names pictures by their role
    shown = {f"js.{role}" for role in ("image", "thumbnail", "reconstruction", "golden", "map")}
    left = {key for key in catalogue() if key not in asked | spelled | shown and key.split(".")[0] not in whole}
    assert left == set()


class Spoken(HTMLParser):
    """Collects what people would read or hear of a template that is stripped of what Jinja fills in."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._silent = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._silent += tag == "kbd"
        hidden = dict(attrs).get("type") == "hidden" or tag in ("button", "option")
        self.found += [value or "" for name, value in attrs if name in SPOKEN and not (name == "value" and hidden)]

    def handle_endtag(self, tag: str) -> None:
        self._silent -= tag == "kbd"

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.found.append(data)


@pytest.mark.parametrize("file", TEMPLATES, ids=lambda file: file.name)
def test_a_template_says_nothing_of_its_own(file: Path) -> None:
    parser = Spoken()
    parser.feed(re.sub(r"\{%.*?%\}|\{\{.*?\}\}|\{#.*?#\}", " ", file.read_text(), flags=re.DOTALL))
    said = {text.strip() for text in parser.found if SIGNS.search(text)}
    assert {text for text in said if text.strip(" –·,") not in NO_TEXT} == set()


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: file.name)
def test_a_script_says_nothing_of_its_own(file: Path) -> None:
    code = re.sub(r"//.*", "", file.read_text())
    literals = re.findall(r'"([^"\n]*)"', code)
    sentences = [text for text in literals if re.search(r"[A-Za-z]{2,} [a-z]{2,}", text) and text != "use strict"]
    assert sentences == []
    assert not re.search(r"textContent = [\"`]\w{3,}|alert\(|innerHTML", code)


def test_templates_are_compiled_and_texts_fill_their_places() -> None:
    for file in TEMPLATES:
        templates.env.get_template(file.name)
    assert Texts("zh")("queue.held", name="Ada") == "Ada 正在查看"
    assert Texts("en").among("state", "an invented one") == "an invented one"
