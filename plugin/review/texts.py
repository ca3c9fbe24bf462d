"""What the pages say, in the languages of the catalogue: one file of keys, each with every text (hop 11)."""

from __future__ import annotations

import re
import tomllib
from functools import cache
from pathlib import Path
from typing import NamedTuple

from fastapi import Request

LANGUAGES = {"en": "English", "zh": "简体中文"}
HTML = {"en": "en", "zh": "zh-Hans"}
THEMES = ("auto", "light", "dark")
CATALOGUE = Path(__file__).parent / "catalogue.toml"
LANGUAGE_COOKIE, THEME_COOKIE = "language", "theme"
SCRIPTS = "js."
"""Keys that the pages' scripts use begin so; they travel with each page."""


@cache
def catalogue() -> dict[str, dict[str, str]]:
    """Key -> language -> text."""
    with CATALOGUE.open("rb") as file:
        sections = tomllib.load(file)
    return {f"{section}.{key}": texts for section, keys in sections.items() for key, texts in keys.items()}


class Texts(NamedTuple):
    """The texts of one language; a template calls it with a key and what to fill in."""

    language: str

    def __call__(self, key: str, **values: object) -> str:
        text = catalogue()[key][self.language]
        return text.format(**values) if values else text

    def among(self, section: str, name: str) -> str:
        """The text of ``name`` in a section, or the name itself where an edge or a connector invents one."""
        found = catalogue().get(f"{section}.{name}")
        return name if found is None else found[self.language]

    def because(self, text: str) -> str:
        """A reason that a line recorded in English, in this language; one that no text of ours made, as it stands."""
        if self.language == "en":
            return text
        return "; ".join(self._because(each) for each in text.split("; "))

    def _because(self, text: str) -> str:
        for key, pattern in _reasons():
            if (found := pattern.fullmatch(text)) is not None:
                return self(key, **found.groupdict())
        return text

    def for_scripts(self) -> dict[str, str]:
        """What the scripts say, without the keys' common beginning."""
        return _for_scripts(self.language)


@cache
def _reasons() -> list[tuple[str, re.Pattern[str]]]:
    """Key and what its English text looks like with its places filled in."""
    english = {key: texts["en"] for key, texts in catalogue().items() if key.startswith("because.")}
    return [(key, re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>.+?)", re.escape(text)))) for key, text in english.items()]


@cache
def _for_scripts(language: str) -> dict[str, str]:
    return {key.removeprefix(SCRIPTS): text[language] for key, text in catalogue().items() if key.startswith(SCRIPTS)}


def texts_of(request: Request) -> Texts:
    """The language that was chosen in this browser, else the first that it asks for and that there is, else English."""
    chosen = request.cookies.get(LANGUAGE_COOKIE)
    if chosen in LANGUAGES:
        return Texts(chosen)
    return Texts(_preferred(request.headers.get("accept-language", "")))


def theme_of(request: Request) -> str:
    """The theme that was chosen in this browser; ``auto`` goes by the system's."""
    chosen = request.cookies.get(THEME_COOKIE, "auto")
    return chosen if chosen in THEMES else "auto"


def _preferred(header: str) -> str:
    wanted = []
    for place, item in enumerate(header[:500].split(",")):
        name, _, weight = item.strip().partition(";q=")
        try:
            share = float(weight or 1)
        except ValueError:
            continue
        language = name.strip().lower().split("-")[0]
        if language in LANGUAGES and share > 0:
            wanted.append((-share, place, language))
    return min(wanted)[2] if wanted else "en"
