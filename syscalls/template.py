"""Chat templates: small jinja2 programs from model files, run as what they are, hostile data.

A template gets messages and gives text. jinja2's immutable sandbox keeps it away from Python's
internals, but not from the machine: it lets a template loop for ever and fill all memory. So, on
top of it,

- there are only the functions, filters and methods of plain values that chats need;
- everything costs: a round of a loop, a call, and every value made, by its size and before it is
  made where it could be large. A rendering may cost MAX_COST: a second or three, and 100 MB or so.

Rendering the longest chat that templates in use are for costs a hundredth of that. Whatever goes
wrong, in compiling or in rendering, is a ValueError that says so.

Imports jinja2; text.py imports this module when the first template is there.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import wraps
from threading import Lock
from typing import Any

from jinja2 import Undefined, nodes, pass_environment
from jinja2.filters import FILTERS
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

MAX_SOURCE = 256 << 10
MAX_RENDERED = 4 << 20
MAX_COST = 1 << 27
ITEM = 16  # a round of a loop, an item of a list; a character costs 1
CALL = 512
MAX_BITS = 4096
MAX_INDENT = 8

CHAT_FILTERS = (
    "abs", "capitalize", "count", "d", "default", "dictsort", "first", "float", "int", "items",
    "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "reverse",
    "round", "select", "selectattr", "sort", "title", "trim", "unique", "upper",
)  # fmt: skip
METHODS: dict[type, frozenset[str]] = {
    str: frozenset([
        "capitalize", "count", "endswith", "find", "index", "isalnum", "isalpha", "isdigit",
        "islower", "isspace", "isupper", "join", "lower", "lstrip", "partition", "removeprefix",
        "removesuffix", "replace", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "split",
        "splitlines", "startswith", "strip", "swapcase", "title", "upper",
    ]),
    dict: frozenset(["get", "items", "keys", "values"]),
    list: frozenset(["count", "index"]),
    tuple: frozenset(["count", "index"]),
    int: frozenset(),
    float: frozenset(),
}  # fmt: skip


class ChatTemplate:
    """A compiled template."""

    def __init__(self, source: str) -> None:
        if len(source) > MAX_SOURCE:
            raise ValueError(f"it has {len(source)} characters, the limit is {MAX_SOURCE}")
        self._sandbox = Sandbox()
        self._lock = Lock()  # the sandbox counts one rendering
        try:
            tree = self._sandbox.parse(source)
            self._template = self._sandbox.from_string(priced(tree))
        except Exception as error:  # noqa: BLE001 - the compilers of jinja2 and Python raise many
            raise ValueError(f"it is not sound: {_reason(error)}") from None

    def render(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool) -> str:
        """Return the text of a chat."""
        with self._lock:
            self._sandbox.left = MAX_COST
            try:
                return self._sandbox.limited(
                    self._template.generate(
                        messages=messages, add_generation_prompt=add_generation_prompt
                    )
                )
            except Excess as error:
                raise ValueError(str(error)) from None
            except Exception as error:  # noqa: BLE001 - a template may do anything
                raise ValueError(f"it fails: {_reason(error)}") from None


class Excess(Exception):
    """The template says no, or wants more than it may have."""


class Sandbox(ImmutableSandboxedEnvironment):
    """An environment in which everything costs."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self) -> None:
        self.left = MAX_COST
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, optimized=False, finalize=self.text
        )  # unoptimized: nothing of the template runs while it is compiled
        own: dict[str, Callable[..., Any]] = {
            "concat": self.concat, "join": _join, "replace": _replace, "rounds": self.rounds,
            "safe": lambda value: value, "sized": self.sized, "string": self.text,
            "tojson": _tojson,
        }  # fmt: skip
        self.filters = {name: self._priced(FILTERS[name]) for name in CHAT_FILTERS} | own
        self.globals = {
            "range": safe_range, "namespace": Namespace, "raise_exception": _raise,
        }  # fmt: skip

    # --- what things cost ---------------------------------------------------------------------

    def spend(self, cost: int) -> None:
        self.left -= cost
        if self.left < 0:
            raise Excess(f"it does too much: more than {MAX_COST} steps or characters")

    def sized(self, value: Any) -> Any:
        """Pay for a value and all in it."""
        todo = [value]
        while todo:
            part = todo.pop()
            if isinstance(part, str):
                self.spend(len(part))
            elif isinstance(part, int) and part.bit_length() > MAX_BITS:
                raise Excess(f"it makes a number of more than {MAX_BITS} bits")
            elif isinstance(part, (list, tuple, set, dict)):
                self.spend(ITEM * (1 + len(part)))
                todo += part
                if isinstance(part, dict):
                    todo += part.values()
        return value

    def rounds(self, items: Iterable[Any]) -> Iterator[Any]:
        """Pay for each round of a loop."""
        for item in items:
            self.spend(ITEM)
            yield item

    def text(self, value: Any) -> str:
        """Return the text of a value; functions and the like have none."""
        self.sized(value)
        if isinstance(value, Undefined):
            return str(value)
        if callable(value) or isinstance(value, Namespace):
            raise Excess(f"it writes a {type(value).__name__}")
        return str(value)

    def concat(self, pieces: Iterable[Any]) -> str:
        """Join the output of a block or the operands of ~."""
        return "".join([self.text(piece) for piece in pieces])

    def limited(self, pieces: Iterable[str]) -> str:
        """Join the whole output."""
        shown, size = [], 0
        for piece in pieces:
            size += len(piece)
            if size > MAX_RENDERED:
                raise Excess(f"it wrote more than {MAX_RENDERED} characters")
            shown.append(piece)
        return "".join(shown)

    def _priced(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def priced_filter(*args: Any, **kwargs: Any) -> Any:
            self.spend(CALL)
            self.sized(list(args))
            return self.sized(function(*args, **kwargs))

        return priced_filter

    # --- what jinja2's sandbox asks -----------------------------------------------------------

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        for kind, methods in METHODS.items():
            if isinstance(obj, kind):
                return attr in methods
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> None:
        """Leave str.format to is_safe_attribute: a width in it makes any size."""

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        __self.spend(CALL)
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str) and __obj.__name__ in ("replace", "join"):
            names = kwargs.keys() - {"_loop_vars", "_block_vars"}  # jinja2's own
            growing = _replace if __obj.__name__ == "replace" else _join_with
            return growing(__self, owner, *args, **{name: kwargs[name] for name in names})
        return __self.sized(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        self.sized([left, right])
        if operator == "%" and isinstance(left, str):
            raise Excess("it formats with %, which is not built")
        ints = isinstance(left, int) and isinstance(right, int)
        if operator == "**" and ints and left.bit_length() * right > MAX_BITS:
            raise Excess(f"it makes a number of more than {MAX_BITS} bits")
        if operator == "*":
            for value, times in ((left, right), (right, left)):
                if isinstance(value, (str, list, tuple)) and isinstance(times, int):
                    self.spend(ITEM * len(value) * max(times, 0))
        return super().call_binop(context, operator, left, right)


@pass_environment
def _replace(sandbox: Any, text: Any, old: Any, new: Any, count: int | None = None) -> str:
    text, old, new = sandbox.text(text), sandbox.text(old), sandbox.text(new)
    times = text.count(old)
    if count is not None and count >= 0:
        times = min(count, times)
    sandbox.spend(len(text) + len(new) * times)
    return str(text.replace(old, new, times))


@pass_environment
def _join(sandbox: Any, items: Any, separator: Any = "", attribute: Any = None) -> str:
    if attribute is not None:
        items = [sandbox.getitem(item, attribute) for item in items]
    texts = [sandbox.text(item) for item in items]
    separator = sandbox.text(separator)
    sandbox.spend(len(separator) * len(texts))
    return str(separator.join(texts))


def _join_with(sandbox: Any, separator: str, items: Any) -> str:
    return _join(sandbox, items, separator)


@pass_environment
def _tojson(sandbox: Any, value: Any, indent: int | None = None) -> str:
    if indent is not None and not 0 <= indent <= MAX_INDENT:
        raise Excess(f"it indents JSON by {indent}, the limit is {MAX_INDENT}")
    sandbox.sized(value)
    return str(sandbox.sized(json.dumps(value, ensure_ascii=False, indent=indent)))


def _raise(message: str) -> None:
    raise Excess(f"it refuses this chat: {message}")


def priced(tree: nodes.Template) -> nodes.Template:
    """Make loops, literals, slices and ~ pay."""
    for loop in tree.find_all(nodes.For):
        if loop.recursive:
            raise Excess("it has a recursive loop, which is not built")
    return _Pricer().visit(tree)  # type: ignore[no-any-return]


class _Pricer(NodeTransformer):
    """Sends what jinja2's sandbox is not asked about through a filter."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _through("rounds", node.iter)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        operands = nodes.List(node.nodes, lineno=node.lineno, environment=node.environment)
        return _through("concat", operands)

    def visit_List(self, node: nodes.Node) -> nodes.Node:
        self.generic_visit(node)
        return _through("sized", node)

    visit_Dict = visit_List

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        return self.visit_List(node) if node.ctx == "load" else node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _through("sized", node) if isinstance(node.arg, nodes.Slice) else node


def _through(name: str, node: nodes.Node) -> nodes.Filter:
    return nodes.Filter(
        node, name, [], [], None, None, lineno=node.lineno, environment=node.environment
    )


def _reason(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return text if len(text) <= 200 else text[:200] + "…"
