"""A JSON schema, and a plain reading of it that knows nothing of grammars."""

from typing import Any

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer"},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


def valid(schema: dict[str, Any], value: Any) -> bool:
    """Whether a value is what a schema allows, of the words that PERSON has."""
    if "enum" in schema:
        return value in schema["enum"]
    match schema["type"]:
        case "object":
            names, parts = set(schema["required"]), schema["properties"]
            right = isinstance(value, dict) and set(value) == names
            return right and all(valid(parts[name], value[name]) for name in names)
        case "array":
            right = isinstance(value, list) and len(value) <= schema["maxItems"]
            return right and all(valid(schema["items"], item) for item in value)
        case "string":
            return isinstance(value, str) and len(value) <= schema["maxLength"]
        case "integer":
            return type(value) is int
    raise AssertionError(schema)
