"""JSON against a schema of docs/schemas: the part of JSON Schema that these use, and no more."""

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "schemas"
KNOWN = {"$schema", "title", "type", "properties", "required", "additionalProperties", "items",
         "const"}  # fmt: skip
TYPES: dict[str, type | tuple[type, ...]] = {
    "string": str, "integer": int, "number": (int, float), "boolean": bool, "null": type(None),
    "object": dict, "array": list,
}  # fmt: skip


def schema(name: str) -> dict[str, Any]:
    """Return a published schema."""
    found: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return found


def validate(value: Any, rule: dict[str, Any], where: str = "$") -> None:
    """Assert that a value is what a schema says."""
    assert rule.keys() <= KNOWN, f"{where}: the schema has {rule.keys() - KNOWN}, not known here"
    if "const" in rule:
        assert value == rule["const"], f"{where} is {value!r}"
    if "type" in rule:
        names = [rule["type"]] if isinstance(rule["type"], str) else rule["type"]
        fits = any(isinstance(value, TYPES[name]) and _exact(value, name) for name in names)
        assert fits, f"{where} is {value!r}, not {names}"
    if isinstance(value, dict):
        properties = rule.get("properties", {})
        absent = set(rule.get("required", ())) - value.keys()
        assert not absent, f"{where} has no {absent}"
        if rule.get("additionalProperties") is False:
            assert value.keys() <= properties.keys(), f"{where}: {value.keys() - properties.keys()}"
        for key, item in value.items():
            validate(item, properties.get(key, {}), f"{where}.{key}")
    if isinstance(value, list):
        for at, item in enumerate(value):
            validate(item, rule.get("items", {}), f"{where}[{at}]")


def _exact(value: Any, name: str) -> bool:
    return not isinstance(value, bool) or name == "boolean"
