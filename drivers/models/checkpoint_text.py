"""The text files of a Hugging Face folder: tokenizer and chat template. Torch-free.

They are handed to clients as they are, after their size and structure were checked here; whether
a client can use such a tokenizer, its text layer says. Whether text begins with a token of its own
is a setting of tokenizer_config.json, else it is what tokenizer.json's template adds.
"""

from pathlib import Path
from typing import Any, NamedTuple

from drivers.models.config import ModelConfig
from drivers.models.errors import FETCH, ModelError, short
from drivers.models.json_fields import Fields
from drivers.models.json_object import parse_object, read_bytes, read_object

TOKENIZER, SETTINGS, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
MAX_TOKENIZER = 64 << 20
MAX_ITEMS = 5 << 19
"""Of a tokenizer, which may take some hundred MB; one with 262,144 tokens has 2 million."""
MAX_SETTINGS = 4 << 20
MAX_SETTING_ITEMS = 1 << 18  # thousands of added tokens, some fields each
MAX_TEMPLATE = 1 << 20


class Texts(NamedTuple):
    """What clients need for text."""

    tokenizer: str | None
    template: str | None
    bos_id: int | None
    add_bos: bool
    files: tuple[Path, ...]
    notes: tuple[str, ...]


def read_texts(folder: Path, config: ModelConfig) -> Texts:
    """Return a folder's tokenizer and template; ECORRUPT, ENOTSUP."""
    settings_path = folder / SETTINGS
    settings: dict[str, Any] = {}
    if settings_path.exists():
        settings = read_object(settings_path, MAX_SETTINGS, MAX_SETTING_ITEMS)
    template, template_path = _template(folder, Fields(SETTINGS, settings))
    files = [path for path in (settings_path, template_path) if path and path.exists()]
    path = folder / TOKENIZER
    if not path.exists():
        note = f"there is no {TOKENIZER}: the model takes ids, no text"
        return Texts(None, template, config.bos_id, False, tuple(files), (note,))
    raw = read_bytes(path, MAX_TOKENIZER)
    tokenizer = parse_object(raw, TOKENIZER, MAX_ITEMS)
    ids, notes = _tokens(tokenizer, config.vocab_size)
    bos_id, add_bos = _beginning(tokenizer, Fields(SETTINGS, settings), ids, config)
    return Texts(raw.decode(), template, bos_id, add_bos, (path, *files), notes)


# --- the vocabulary -------------------------------------------------------------------------------


def _corrupt(what: str) -> ModelError:
    return ModelError("ECORRUPT", f"{TOKENIZER}: {what}", FETCH)


def _tokens(tokenizer: dict[str, Any], rows: int) -> tuple[dict[str, int], tuple[str, ...]]:
    """Return all tokens with their ids, those of the vocabulary below `rows`; and notes."""
    vocab = _vocabulary(tokenizer.get("model"))
    wrong = next((t for t, id in vocab.items() if type(id) is not int or not 0 <= id < rows), None)
    if wrong is not None:
        raise _corrupt(
            f"model.vocab: token {short(wrong)} has id {short(vocab[wrong])}, the embedding has "
            f"{rows} rows"
        )
    if len(set(vocab.values())) != len(vocab):
        twice = len(vocab) - len(set(vocab.values()))
        raise _corrupt(f"model.vocab: {twice} ids are there twice")
    added = _added(tokenizer)
    outside = {token: id for token, id in added.items() if id >= rows}
    if not outside:
        return vocab | added, ()
    token, id = next(iter(outside.items()))  # Gemma 3 has one, for images
    what = f"{len(outside)} added tokens have no row in the embedding of {rows}"
    return vocab | added, (f"{TOKENIZER}: {what}, such as {short(token)}, {id}",)


def _vocabulary(model: Any) -> dict[str, int]:
    vocab = model.get("vocab") if isinstance(model, dict) else None
    match vocab:
        case dict() if vocab:
            return vocab
        case [_, *_] if all(isinstance(i, list) and i and isinstance(i[0], str) for i in vocab):
            tokens = {item[0]: id for id, item in enumerate(vocab)}  # of unigrams, with scores
            if len(tokens) != len(vocab):
                twice = len(vocab) - len(tokens)
                raise _corrupt(f"model.vocab: {twice} tokens are there twice")
            return tokens
    raise _corrupt(f"model.vocab is {short(vocab)}, not tokens with ids")


def _added(tokenizer: dict[str, Any]) -> dict[str, int]:
    added = tokenizer.get("added_tokens", [])
    if not isinstance(added, list):
        raise _corrupt(f"added_tokens is {short(added)}, not a list")
    tokens = {}
    for index, token in enumerate(added):
        id = token.get("id") if isinstance(token, dict) else None
        content = token.get("content") if isinstance(token, dict) else None
        if type(id) is not int or not 0 <= id < 1 << 32 or not isinstance(content, str):
            raise _corrupt(f"added_tokens[{index}] is {short(token)}, not a token with its id")
        tokens[content] = id
    return tokens


# --- the beginning of text ------------------------------------------------------------------------


def _beginning(
    tokenizer: dict[str, Any], settings: Fields, ids: dict[str, int], config: ModelConfig
) -> tuple[int | None, bool]:
    """Return the id that text begins with if it does, and whether it does."""
    if settings.flag("add_eos_token"):
        raise settings.not_built("add_eos_token", "text without a token at its end")
    first = _template_token(tokenizer.get("post_processor"))
    if settings.value("add_bos_token") is not None:
        first = None
    named = first or _named(settings, "bos_token")
    if first is not None and first not in ids:
        raise _corrupt(f"post_processor: token {short(first)} is not in the vocabulary")
    bos_id = config.bos_id if named is None else ids.get(named, config.bos_id)
    if bos_id is not None and bos_id >= config.vocab_size:
        raise _corrupt(f"token {short(named)} has id {bos_id}, no row in the embedding")
    adds = settings.flag("add_bos_token") or first is not None
    return bos_id, adds and bos_id is not None


def _named(settings: Fields, name: str) -> str | None:
    """Return the text of a token: the field itself, or what it says under `content`."""
    value = settings.value(name)
    if isinstance(value, dict):
        value = value.get("content")
    if value is not None and not isinstance(value, str):
        raise settings.corrupt(name, "a token")
    return value


def _template_token(processor: Any) -> str | None:
    """Return the token that a post-processor puts before a text, None if it adds nothing."""
    parts = [processor] if processor is not None else []
    match processor:
        case {"type": "Sequence", "processors": [*parts]}:
            pass
    tokens = []
    for part in parts:
        match part:
            case {"type": "ByteLevel"}:
                pass
            case {"type": "TemplateProcessing", "single": [{"Sequence": _}]}:
                pass
            case {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": str(token)}}, {"Sequence": _}],
            }:
                tokens.append(token)
            case _:
                raise _not_built(f"post_processor {short(part)}")
    if len(tokens) > 1:
        raise _not_built(f"post_processor with the tokens {short(tokens)} before a text")
    return tokens[0] if tokens else None


def _not_built(what: str) -> ModelError:
    built = "built is a template with up to one token, before the text"
    return ModelError("ENOTSUP", f"{TOKENIZER}: {what} is not built", built)


# --- the chat template ----------------------------------------------------------------------------


def _template(folder: Path, settings: Fields) -> tuple[str | None, Path | None]:
    """Return the chat template, and the file of its own if it has one."""
    path = folder / TEMPLATE
    if path.exists():
        raw = read_bytes(path, MAX_TEMPLATE)
        try:
            return raw.decode("utf-8"), path
        except UnicodeDecodeError as error:
            what = f"{TEMPLATE}: not UTF-8 at byte {error.start}"
            raise ModelError("ECORRUPT", what, FETCH) from None
    template = settings.value("chat_template")
    if isinstance(template, list):
        template = _default(template, settings)
    if template is not None and not isinstance(template, str):
        raise settings.corrupt("chat_template", "a text, or named texts")
    if template is not None and len(template) > MAX_TEMPLATE:
        raise settings.corrupt("chat_template", f"up to {MAX_TEMPLATE} letters")
    return template, None


def _default(templates: list[Any], settings: Fields) -> Any:
    for entry in templates:
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise settings.corrupt("chat_template", "a text, or named texts")
        if entry["name"] == "default":
            return entry.get("template")
    return None
