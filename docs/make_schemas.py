"""Write files of docs/schemas: what commands write with --json. Others there are written by hand.

python docs/make_schemas.py            write them
python docs/make_schemas.py --check    exit 1 if they are not what the table says

A document is {"schema": "llmos.NAME/1", "data": ...}. DATA says what `data` is: the row of the ABI
that it is made of, or its keys with their types. A key that is added is no new version; one that
goes, or means something else, is.
"""

import json
import sys
import types
from pathlib import Path
from typing import Annotated, Any, TypedDict, Union, get_args, get_origin, get_type_hints

from drivers.models.manifest import Manifest
from drivers.sizes import ITEMSIZES
from syscalls import abi
from userland.bin import models

FOLDER = Path(__file__).resolve().parent / "schemas"
DRAFT = "https://json-schema.org/draft/2020-12/schema"
Scalar = str | float | bool


class DEVICE(TypedDict):
    name: str
    device: str


MEMORY = {
    "weights": int, "work": int, "kv_per_token": int, "kv_of_context": int, "fits": bool,
    "largest_kv": int,
}  # fmt: skip

DATA: dict[str, Any] = {
    "ask": {
        "text": str, "finish": str | None, "seed": int | None, "model": str,
        "usage": {
            "prompt": int, "cached": int, "output": int, "overrun": int, "device_us": int,
        },
        "first_s": float, "whole_s": float,
    },
    "config.check": {"problems": list[str], "notes": list[str], "set": list[str]},
    "config.path": [{"layer": str, "path": str, "exists": bool}],
    "config.show": [
        {"key": str, "value": Scalar | None, "origin": str, "running": Scalar | None}
    ],
    "doctor": [{"check": str, "level": str, "text": str, "todo": str}],
    "explain": [{
        "code": str, "number": int, "exit_code": int, "meaning": str,
        "causes": list[str], "steps": list[str],
    }],
    "explain.task": [
        get_type_hints(abi.ExplainResult)
        | {"name": str, "model": str, "length": int, "losses": [abi.LossRow]}
    ],
    "ctx.export": {
        "name": str, "file": str, "bytes": int, "tokens": int, "model": str, "sealed": bool,
    },
    "ports": [abi.PortRow],
    "ctx.import": {"name": str, "model": str, "tokens": int},
    "load": abi.ModelRow,
    "limit": list[abi.LimitRow],
    "models": list[models.Row],
    "models.du": {
        "folder": str, "total": int, "models": [{"name": str, "bytes": int}],
        "left": [{"name": str, "bytes": int}],
    },
    "models.rm": [{"name": str, "freed": int, "place": str}],
    "models.show": get_type_hints(Manifest) | {
        "folder": str, "layers": int, "hidden": int, "heads": int, "kv_heads": int, "vocab": int,
        "template": bool, "loaded": list[DEVICE] | None, "estimated_ctx": int, "free": int,
        "dtypes": dict.fromkeys(ITEMSIZES, MEMORY),
    },
    "models.verify": [{"name": str, "ok": bool, "problem": str}],
    "ping": {"kernel_pid": int, "count": int, "best_us": float, "mean_us": float},
    "saves": list[abi.SaveRow],
    "status": {
        "address": str, "kernel": abi.KernelRow, "devices": list[abi.DeviceRow],
        "models": list[abi.ModelRow], "pools": list[abi.PoolRow], "store": abi.StoreRow | None,
    },
    "usage": list[abi.UsageRow],
}  # fmt: skip
ERROR = {"error": {"code": str, "message": str, "hint": str}}
"""What goes to stderr instead; `details` is there if the kernel has given numbers."""

_PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}


def schema_of(kind: Any) -> dict[str, Any]:
    """Return the JSON Schema of a type, a row, a list of one kind, or a table of keys."""
    if kind is Any:
        return {}
    if isinstance(kind, dict):
        return _object(kind)
    if isinstance(kind, list):
        return {"type": "array", "items": schema_of(kind[0])}
    if kind in _PLAIN:
        return {"type": _PLAIN[kind]}
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return schema_of(args[0])
    if origin in (list, tuple):
        return {"type": "array", "items": schema_of(args[0])}
    if origin in (Union, types.UnionType):
        made = [schema_of(arg) for arg in args]
        names = [name for one in made for name in _names(one["type"])]
        return {key: value for one in made for key, value in one.items()} | {"type": names}
    return _object(get_type_hints(kind))


def _names(types: str | list[str]) -> list[str]:
    return [types] if isinstance(types, str) else types


def _object(keys: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {key: schema_of(kind) for key, kind in keys.items()},
        "required": list(keys),
    }


def documents() -> dict[str, dict[str, Any]]:
    """Return each schema by its file's name."""
    made = {}
    for name, data in DATA.items():
        whole = _object({"schema": str, "data": data})
        whole["properties"]["schema"] = {"const": f"llmos.{name}/1"}
        made[name] = {"$schema": DRAFT, "title": f"llmos {name.replace('.', ' ')} --json"} | whole
    error = _object(ERROR)
    error["properties"]["error"]["properties"]["details"] = {"type": "object"}
    made["error"] = {"$schema": DRAFT, "title": "an error of a command with --json"} | error
    return made


def main() -> None:
    """Write the files, or compare them."""
    made = {FOLDER / f"{name}.json": json.dumps(made, indent=1) + "\n"
            for name, made in documents().items()}  # fmt: skip
    if "--check" in sys.argv[1:]:
        stale = sorted(path.name for path, text in made.items()
                       if not path.exists() or path.read_text() != text)  # fmt: skip
        sys.exit(f"stale: {', '.join(stale)}; python docs/make_schemas.py" if stale else 0)
    FOLDER.mkdir(exist_ok=True)
    for path, text in made.items():
        path.write_text(text)


if __name__ == "__main__":
    main()
