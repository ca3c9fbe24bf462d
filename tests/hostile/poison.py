"""Puts markup into every text that an edge or a user can set: the fields are walked, so that a new one is found."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any
from urllib.parse import quote

from fastapi.params import Form
from fastapi.routing import APIRoute
from pydantic import BaseModel, TypeAdapter, ValidationError

from contract.event import HEADER, Header, Verdict
from tests.plugin import synthetic as s

TAG = "xss-"


class Poison:
    """One probe for each name of a field; ``reached`` are the fields that took theirs."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.reached: set[str] = set()

    def probe(self, name: str) -> str:
        """Text that is an element, an attribute's end and a script's, wherever it stands unescaped."""
        if name not in self.names:
            self.names.append(name)
        number = self.names.index(name)
        return f"\"'`></script><{TAG}{number} on{TAG}{number}=1>{{{{{number}}}}}"

    def number_of(self, name: str) -> int:
        return self.names.index(name)

    def fill(self, model: BaseModel) -> dict[str, Any]:
        """The JSON of a valid model with every text that may be any replaced."""
        return self._fill(type(model), model.model_dump(mode="json", by_alias=True), lambda _: True)

    def _fill(self, kind: type[BaseModel], values: dict[str, Any], valid: Any) -> dict[str, Any]:
        for name, field in kind.model_fields.items():
            key = field.alias or name
            stands = values.get(key)
            if key in ("schema", "kind"):
                continue
            inner = _models_in(field.annotation)
            if inner and isinstance(stands, list):
                values[key] = [self._fill(inner[0], dict(each), valid) for each in stands]
            elif inner and isinstance(stands, dict):
                values[key] = self._fill(inner[0], dict(stands), valid)
            elif isinstance(stands, dict):
                values[key] = {self.probe(name): 1.0}
            else:
                values[key] = self.probe(name)
            try:
                kind.model_validate(values)
                if not inner and "str" in str(field.annotation):
                    self.reached.add(f"{kind.__name__}.{name}")
            except ValidationError:
                if stands is None:
                    values.pop(key)
                else:
                    values[key] = stands
        return values

    def header(self, header: Header) -> Header:
        """A poisoned event."""
        return HEADER.validate_python(self.fill(header))

    def shown_on(self, page: str) -> set[int]:
        """The probes that a page shows as text; fails where one became anything else."""
        reader = _Reader()
        reader.feed(page)
        assert not reader.elements, f"markup got through: {sorted(reader.elements)}"
        return {int(number) for number in re.findall(rf"<{TAG}(\d+) ", "\n".join(reader.texts))}


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for each in getattr(annotation, "__args__", ()) for found in _models_in(each)]


class _Reader(HTMLParser):
    """What a browser would make of a page: elements and attributes of ours, and all text."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: set[str] = set()
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag.startswith(TAG):
            self.elements.add(tag)
        for name, value in attrs:
            if TAG in name:
                self.elements.add(f"{tag}[{name}]")
            text = (value or "").strip().lower()
            if name in ("href", "src", "action", "formaction") and text.startswith(("javascript:", "data:")):
                self.elements.add(f"{tag}[{name}={text[:20]}]")
            self.texts.append(value or "")

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def messages(poison: Poison) -> list[list[bytes]]:
    """One of each kind of event, every text of it poisoned; one part is flagged, with pictures, one was never seen."""
    image, wanted, deviation, region = s.washer(1)
    map_ref = s.part_ref("map", deviation, codec="raw", dtype="float16", shape=(64, 64), to_part=(4, 0, 0, 0, 4, 0))
    pictures = (
        s.part_ref("image", image, codec="png", shape=(256, 256, 3)),
        s.part_ref("reconstruction", wanted, codec="png", shape=(256, 256, 3)),
    )
    flagged = s.result(
        2, "x", Verdict.REJECT, score=4.0, reason="r", regions=(region,), parts=(map_ref,), quality={"q": 1.0}
    )
    lost = poison.fill(s.missed(4))
    return [
        s.frames(poison.header(s.trigger(1, "x"))),
        s.frames(poison.header(flagged), [deviation]),
        s.frames(poison.header(s.attachment(3, "x", 2, pictures)), [image, wanted]),
        s.frames(HEADER.validate_python({**lost, "part_id": poison.probe("part_id")[::-1]})),
        s.frames(poison.header(s.gap(5))),
        s.frames(poison.header(s.state(1))),
    ]


def pages(routes: list[Any], poison: Poison, parts: int = 2) -> list[str]:
    """Every page and every reading route, their parameters filled: texts with probes, numbers with parts."""
    found = []
    for route in routes:
        if not isinstance(route, APIRoute) or "GET" not in (route.methods or ()) or route.path.endswith("/stream"):
            continue
        words = [
            f"{each.name}={quote(poison.probe(each.name))}"
            for each in route.dependant.query_params
            if "str" in str(each.field_info.annotation)
        ]
        for number in range(1, parts + 1):
            path = route.path.replace("{number}", str(number)).replace("{name}", "olga").replace("{line}", "line-1")
            path = re.sub(r"\{(\w+)\}", lambda found: quote(poison.probe(found[1]), safe=""), path)
            found += [path, f"{path}?{'&'.join(words)}"] if words else [path]
    return list(dict.fromkeys(found))


def forms(routes: list[Any], poison: Poison) -> list[tuple[str, str, dict[str, Any], dict[str, Any]]]:
    """(method, path, form fields, JSON) of every route that writes, every text in it poisoned."""
    found = []
    for route in routes:
        if not isinstance(route, APIRoute) or (route.methods or set()) <= {"GET", "HEAD", "OPTIONS"}:
            continue
        path = route.path.replace("{number}", "1").replace("{name}", "olga").replace("{line}", "line-1")
        path = path.replace("{word}", "A" * 22)
        path = re.sub(r"\{(\w+)\}", lambda found: quote(poison.probe(found[1]), safe=""), path)
        fields, body = {}, {}
        for each in route.dependant.body_params:
            value = _any(each.field_info.annotation, poison.probe(each.name))
            if isinstance(each.field_info, Form):
                fields[each.name] = value
            else:
                body = value
        for method in sorted(route.methods or ()):
            found.append((method, path, fields, body))
    return found


def _any(annotation: Any, text: str) -> Any:
    """Something that a field could be given: text where it takes text, the first of its words, else a number."""
    if models := _models_in(annotation):
        fields = models[0].model_fields
        return {name: _any(field.annotation, f"{text}{name}") for name, field in fields.items() if field.is_required()}
    schema = TypeAdapter(annotation).json_schema()
    kinds = [schema, *schema.get("anyOf", [])]
    words = next((each["enum"] for each in kinds if "enum" in each), None)
    if words:
        return words[0]
    return text if any(each.get("type") == "string" for each in kinds) else 1
