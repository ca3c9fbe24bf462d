"""The C# example over HTTP: no .NET here compiles it, so its paths and fields are compared with the description."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SOURCE = (ROOT / "docs" / "examples" / "csharp" / "Program.cs").read_text()
DESCRIBED: dict[str, Any] = json.loads((ROOT / "docs" / "openapi.json").read_text())
TYPES = {
    "long": {"integer"},
    "long?": {"integer", "null"},
    "string": {"string", "null"},
    "double?": {"number", "null"},
}


def schemas() -> dict[str, Any]:
    found: dict[str, Any] = DESCRIBED["components"]["schemas"]
    return found


def classes() -> dict[str, dict[str, str]]:
    """Class, field and C# type of everything that is sent or read; a subclass has its base's fields too."""
    found: dict[str, dict[str, str]] = {}
    for name, base, body in re.findall(r"public class (\w+)(?: : (\w+))?\s*\{(.*?)\n    \}", SOURCE, re.S):
        fields = re.findall(r'\[JsonPropertyName\("(\w+)"\)\] public (\S+) \w+ \{ get; set; \}', body)
        assert body.count("public") == len(fields), f"{name}: a field without its name"
        found[name] = {**found.get(base, {}), **dict(fields)}
    return found


def kinds(schema: dict[str, Any]) -> set[str]:
    """The JSON types that a field may have; the name of a model where it is one."""
    if "anyOf" in schema:
        return set().union(*(kinds(each) for each in schema["anyOf"]))
    if "$ref" in schema:
        target = schema["$ref"].rpartition("/")[2]
        return {"string"} if "enum" in schemas()[target] else {target}
    if schema.get("type") == "array":
        return {f"List<{next(iter(kinds(schema['items'])))}>"}
    return {schema["type"]}


def test_every_field_is_there_and_has_its_type() -> None:
    assert set(classes()) == {"Part", "Image", "PartDetail", "Page_Part_", "VerdictBody", "Decided", "Problem"}
    for name, fields in classes().items():
        described = schemas()[name]["properties"]
        assert fields
        for field, kind in fields.items():
            assert field in described, f"{name}.{field}"
            assert kinds(described[field]) <= TYPES.get(kind, {kind}), f"{name}.{field}: {kind}"
        if name == "VerdictBody":
            assert set(schemas()[name].get("required", [])) <= set(fields)


def test_every_path_and_parameter_is_there() -> None:
    paths = {re.sub(r"\{\w+\}", "{}", path): each for path, each in DESCRIBED["paths"].items()}
    literal = re.findall(r'"(/api/[^"]*)"((?:\s*\+\s*\w+(?:\.\w+)?)?)((?:\s*\+\s*"[^"]*")?)', SOURCE)
    assert len(literal) == 4
    for start, middle, end in literal:
        path = start + ("{}" if middle.strip() not in ("", "+ query") else "") + end.strip(' +"')
        assert path in paths, path
        method = "post" if path.endswith("/verdicts") else "get"
        assert method in paths[path], path
    query = re.findall(r"[?&](\w+)=", SOURCE)
    known = {each["name"] for each in paths["/api/v1/parts"]["get"]["parameters"]}
    assert query and set(query) <= known
    assert "Last-Event-ID".lower() in {each["name"] for each in paths["/api/v1/stream"]["get"]["parameters"]}


def test_the_words_that_it_compares_and_sends_are_ones_that_there_are() -> None:
    assert set(re.findall(r'Verdict != "(\w+)"', SOURCE)) <= set(schemas()["Verdict"]["enum"])
    (decision,) = re.findall(r'Decide\(part\.Id, "(\w+)"\)', SOURCE)
    assert decision in json.dumps(schemas()["VerdictBody"]["properties"]["decision"])
    events = DESCRIBED["paths"]["/api/v1/stream"]["get"]["responses"]["200"]["description"]
    assert all(f"`{name}`" in events for name in re.findall(r'name == "(\w+)"', SOURCE))
