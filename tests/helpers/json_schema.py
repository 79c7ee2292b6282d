"""Checks a document against one of docs/schemas: the part of JSON Schema that they are written in.

Stricter than the schema in one point: a field that it does not name is an error here, so that none
goes out that is not written down.
"""

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "schemas"
KNOWN = {
    "$schema", "title", "description", "type", "enum", "const", "properties", "required", "items",
}  # fmt: skip
TYPES: dict[str, Any] = {
    "object": dict, "array": list, "string": str, "boolean": bool, "null": type(None),
    "integer": int, "number": (int, float),
}  # fmt: skip


def check_document(document: Any) -> None:
    """Check a document against the schema that it names."""
    name, version = document["schema"].removeprefix("llmos.").split("/")
    assert version == "1"
    check(document, json.loads((FOLDER / f"{name}.json").read_text()), name)


def check(value: Any, schema: dict[str, Any], where: str) -> None:
    """Raise AssertionError unless the value is as the schema says."""
    assert set(schema) <= KNOWN, f"{where}: cannot check {set(schema) - KNOWN}"
    if "const" in schema:
        assert value == schema["const"], where
    if "enum" in schema:
        assert value in schema["enum"], f"{where}: {value!r} is none of {schema['enum']}"
    if "type" in schema:
        types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        fits = [name for name in types if _is(value, name)]
        assert fits, f"{where}: {value!r} is no {types}"
    if isinstance(value, dict) and "properties" in schema:
        missing = set(schema.get("required", ())) - set(value)
        assert not missing, f"{where}: without {missing}"
        for key, item in value.items():
            assert key in schema["properties"], f"{where}: {key} is not written down"
            check(item, schema["properties"][key], f"{where}.{key}")
    if isinstance(value, list) and "items" in schema:
        for at, item in enumerate(value):
            check(item, schema["items"], f"{where}[{at}]")


def _is(value: Any, name: str) -> bool:
    if isinstance(value, bool):
        return name == "boolean"
    return isinstance(value, TYPES[name])
