"""Chat templates: small jinja2 programs from model files, run as what they are, hostile data.

A template gets messages and gives text. jinja2's immutable sandbox keeps it away from Python's
internals, but not from the machine: it lets a template loop for ever and fill all memory. So, on
top of it,

- there are only the functions, filters, tests and methods of plain values that chats need;
- no text is longer than what may be written, no number has more than MAX_BITS, no list is nested
  more than MAX_DEPTH deep, no dictionary has more than MAX_KEYS: no single operation goes far
  beyond what was paid for it;
- everything costs, and is paid for before it is done where it could be large. The unit is a byte
  of a value, in all its depth, that is made or looked at, or what takes about as long as some. A
  rendering may cost MAX_COST: seconds, and 200 MB, in the worst case.

Rendering the longest chat that templates in use are for costs a third of that. Whatever goes
wrong, in compiling or in rendering, is a ValueError that says so.

Imports jinja2; text.py imports this module when the first template is there.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import wraps
from sys import getsizeof
from threading import Lock
from typing import Any

from jinja2 import Undefined
from jinja2.filters import FILTERS
from jinja2.runtime import BlockReference, Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range
from jinja2.tests import TESTS
from jinja2.utils import Namespace

from syscalls import chatfilters
from syscalls.pricer import Excess, priced

MAX_SOURCE = 256 << 10
MAX_RENDERED = 4 << 20
MAX_COST = 1 << 27
ITEM = 16  # a round of a loop, an argument
CALL = 128
PIECE = 64  # per character, of what cuts a text into a list
MAX_BITS = 4096
MAX_DEPTH = 32
MAX_KEYS = 128  # of a dictionary: keys can be made to collide, and a look-up then reads them all

CHAT_FILTERS = (
    "abs", "capitalize", "count", "d", "default", "dictsort", "first", "float", "int", "items",
    "last", "length", "lower", "map", "max", "min", "reject", "rejectattr", "reverse", "select",
    "selectattr", "upper",
)  # fmt: skip
SHALLOW_FILTERS = frozenset(["count", "d", "default", "first", "last", "length"])
SHALLOW_TESTS = frozenset([
    "boolean", "callable", "defined", "false", "float", "integer", "iterable", "mapping", "none",
    "number", "sameas", "sequence", "string", "true", "undefined",
])  # fmt: skip
"""What looks at nothing inside a value."""
CUTTING = frozenset(["rsplit", "split", "splitlines", "title"])
HOLDERS: Any = (list, tuple, set, dict, type({}.keys()), type({}.values()), type({}.items()))
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

    def render(
        self,
        messages: Sequence[Mapping[str, str]],
        add_generation_prompt: bool,
        words: Mapping[str, str] | None = None,
    ) -> str:
        """Return the text of a chat; `words` are markup that the template may call by name."""
        with self._lock:
            self._sandbox.left = MAX_COST
            try:
                return self._sandbox.limited(
                    self._template.generate(
                        messages=messages,
                        add_generation_prompt=add_generation_prompt,
                        **(words or {}),
                    )
                )
            except Excess as error:
                raise ValueError(str(error)) from None
            except Exception as error:  # noqa: BLE001 - a template may do anything
                raise ValueError(f"it fails: {_reason(error)}") from None


class Sandbox(ImmutableSandboxedEnvironment):
    """An environment in which everything costs."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self) -> None:
        self.left = MAX_COST
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, optimized=False, finalize=self.text
        )  # unoptimized: nothing of the template runs while it is compiled
        own: dict[str, Any] = {
            "concat": self.concat, "paid": self.spend, "rounds": self.rounds, "sized": self.sized,
            "join": chatfilters.join, "list": chatfilters.list_of, "replace": chatfilters.replace,
            "round": chatfilters.round_to, "safe": lambda value: value, "sort": chatfilters.sort,
            "string": self.text, "title": chatfilters.title, "tojson": chatfilters.tojson,
            "trim": chatfilters.trim, "unique": chatfilters.unique,
        }  # fmt: skip
        filters = {name: FILTERS[name] for name in CHAT_FILTERS}
        self.filters = self._priced(filters, SHALLOW_FILTERS) | own
        self.tests = self._priced(TESTS, SHALLOW_TESTS)
        self.globals = {
            "range": safe_range, "namespace": Namespace, "raise_exception": chatfilters.refuse,
        }  # fmt: skip

    # --- what things cost ---------------------------------------------------------------------

    def spend(self, cost: int) -> None:
        """Pay, or stop; a template may name this, and gains nothing by odd prices."""
        if not 0 <= cost <= self.left:
            raise Excess(f"it does too much: more than {MAX_COST} steps or bytes")
        self.left -= cost

    def sized(self, value: Any, depth: int = 0) -> Any:
        """Pay for a value and all in it."""
        self.spend(getsizeof(value))
        if isinstance(value, str):
            if len(value) > MAX_RENDERED:
                raise Excess(f"it makes a text of more than {MAX_RENDERED} characters")
        elif isinstance(value, int):
            if value.bit_length() > MAX_BITS:
                raise Excess(f"it makes a number of more than {MAX_BITS} bits")
        elif isinstance(value, range):
            self.spend(ITEM * len(value))
        elif isinstance(value, HOLDERS):
            if depth == MAX_DEPTH:
                raise Excess(f"it nests lists more than {MAX_DEPTH} deep")
            for part in value:
                self.sized(part, depth + 1)
            if isinstance(value, dict):
                if len(value) > MAX_KEYS:
                    raise Excess(f"it makes a dictionary of more than {MAX_KEYS} keys")
                for part in value.values():
                    self.sized(part, depth + 1)
        elif isinstance(value, Namespace) and depth:
            raise Excess("it puts a Namespace into another value")
        return value

    def scanned(self, name: str, text: str, args: Iterable[Any]) -> None:
        """Pay for a method of a text: some compare all of it with all of an argument."""
        width = sum(len(arg) for arg in args if isinstance(arg, str))
        self.spend(len(text) * (1 + width + (PIECE if name in CUTTING else 0)))

    def rounds(self, items: Iterable[Any], price: int) -> Iterator[Any]:
        """Pay for each round of a loop."""
        for item in items:
            self.spend(ITEM)
            self.spend(price)
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

    def _priced(self, functions: Mapping[str, Any], shallow: frozenset[str]) -> dict[str, Any]:
        """Make filters or tests pay: for the call, and if they are not shallow, by size."""

        def price(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
            @wraps(function)
            def paying(*args: Any, **kwargs: Any) -> Any:
                self.spend(CALL)
                if name in shallow:
                    return function(*args, **kwargs)
                given = [*args, *kwargs.values()]
                self.spend(ITEM * sum(len(value) for value in given if isinstance(value, str)))
                self.sized(given)
                return self.sized(function(*args, **kwargs))

            return paying

        return {name: price(name, function) for name, function in functions.items()}

    # --- what jinja2's sandbox asks -----------------------------------------------------------

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        for kind, methods in METHODS.items():
            if isinstance(obj, kind):
                return attr in methods
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> None:
        """Leave str.format to is_safe_attribute: a width in it makes any size."""

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Pay for the key: filters walk along paths of any length, and tuples are hashed."""
        self.sized(argument)
        return super().getitem(obj, argument)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        named = {name: kwargs[name] for name in kwargs.keys() - {"_loop_vars", "_block_vars"}}
        given = [*args, *named.values()]  # without jinja2's own
        __self.spend(CALL + ITEM * len(given))
        if isinstance(__obj, Macro | BlockReference):  # its body pays
            return super().call(__context, __obj, *args, **kwargs)
        __self.sized(given)
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str):
            growing = chatfilters.GROWING.get(__obj.__name__)
            if growing is not None:
                return growing(__self, owner, *args, **named)
            __self.scanned(__obj.__name__, owner, given)
        elif not isinstance(owner, dict):
            __self.sized(owner)
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


def _reason(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return text if len(text) <= 200 else text[:200] + "…"
