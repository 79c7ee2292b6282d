"""The tokenizer, the template and the beginning of text of a Hugging Face folder."""

import json
from pathlib import Path
from typing import Any

import pytest

from drivers.models import checkpoint_text
from drivers.models.checkpoint import describe_checkpoint
from tests.helpers import checkpoints
from tests.helpers.checkpoints import VOCAB
from tests.helpers.folders import TOKENS, refused, with_text

BOS = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return with_text(checkpoints.write(tmp_path / "model", "qwen2"))


def settings(folder: Path, **fields: Any) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps(fields))


def test_no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    found = describe_checkpoint(folder)
    assert found.texts.keys() == {"config.json"}
    assert found.notes == ("there is no tokenizer.json: the model takes ids, no text",)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": None}, "model.vocab is None"),
        ({"model": {"vocab": {}}}, "model.vocab is {}"),
        ({"model": {"vocab": 7}}, "model.vocab is 7"),
        ({"model": {"vocab": []}}, "model.vocab is []"),
        ({"model": {"vocab": TOKENS | {"x": VOCAB}}}, "token 'x' has id 320, the embedding has"),
        ({"model": {"vocab": TOKENS | {"x": -1}}}, "token 'x' has id -1"),
        ({"model": {"vocab": TOKENS | {"x": "1"}}}, "token 'x' has id '1'"),
        ({"model": {"vocab": TOKENS | {"x": 5}}}, "1 ids are there twice"),
        ({"model": {"vocab": [["a", 0.0]] * 3}}, "2 tokens are there twice"),
        ({"model": {"vocab": [[f"a{n}", 0.0] for n in range(321)]}}, "token 'a320' has id 320"),
        ({"model": {"vocab": [["a", 0.0], [[], 0.0]]}}, "model.vocab is [['a', 0.0], [[], 0.0]]"),
        ({"added_tokens": {}}, "added_tokens is {}"),
        ({"added_tokens": [{"id": 1}]}, "added_tokens[0] is {'id': 1}"),
        ({"added_tokens": [{"id": True, "content": "x"}]}, "added_tokens[0]"),
        ({"added_tokens": [{"id": 2**40, "content": "x"}]}, "added_tokens[0]"),
        ({"post_processor": {"type": "TemplateProcessing",
                             "single": [{"SpecialToken": {"id": "<x>"}}, {"Sequence": {}}]}},
         "token '<x>' is not in the vocabulary"),
    ],
)  # fmt: skip
def test_a_tokenizer_that_lies(folder: Path, changes: dict[str, Any], said: str) -> None:
    refused(with_text(folder, **changes), "tokenizer.json: ", said)


def test_a_token_without_a_row(folder: Path) -> None:
    """Gemma 3 has one for images; text that spells it is refused when it is appended."""
    found = describe_checkpoint(with_text(folder, added_tokens=[{"id": VOCAB, "content": "<img>"}]))
    assert "1 added tokens have no row" in found.notes[0] and "'<img>'" in found.notes[0]
    first = [{"SpecialToken": {"id": "<img>"}}, {"Sequence": {}}]
    added = [{"id": VOCAB, "content": "<img>"}]
    processor = {"type": "TemplateProcessing", "single": first}
    refused(with_text(folder, added_tokens=added, post_processor=processor), "no row in")
    settings(folder, bos_token="<img>")
    refused(with_text(folder, added_tokens=added), "'<img>' has id 320, no row in")


def test_how_text_begins(folder: Path) -> None:
    def found(**changes: Any) -> tuple[int | None, bool]:
        config = describe_checkpoint(with_text(folder, **changes)).config
        return config.bos_id, config.add_bos

    template = {"type": "TemplateProcessing", "single": BOS}
    plain = {"type": "TemplateProcessing", "single": BOS[1:]}
    level = {"type": "ByteLevel"}
    assert found() == (1, False)
    assert found(post_processor=level) == found(post_processor=plain) == (1, False)
    assert found(post_processor=template) == (300, True)
    both = {"type": "Sequence", "processors": [level, template]}
    assert found(post_processor=both) == (300, True)
    settings(folder, add_bos_token=False, bos_token="<s>")
    assert found(post_processor=template) == (300, False), "as transformers 5 has it"
    settings(folder, add_bos_token=True, bos_token={"content": "t7"})
    assert found() == (7, True)
    settings(folder, add_bos_token=True)
    assert found() == (1, True)


@pytest.mark.parametrize(
    "processor",
    [
        {"type": "BertProcessing"}, 7, [], {"type": "TemplateProcessing"},
        {"type": "TemplateProcessing", "single": [*BOS, BOS[0]]},
        {"type": "TemplateProcessing", "single": [BOS[0], *BOS]},
        {"type": "Sequence", "processors": [{"type": "TemplateProcessing", "single": BOS}] * 2},
        {"type": "Sequence", "processors": 7},
        {"type": "Sequence", "processors": [{"type": "Sequence", "processors": []}]},
    ],
)  # fmt: skip
def test_beginnings_that_are_not_built(folder: Path, processor: Any) -> None:
    refused(with_text(folder, post_processor=processor), "post_processor", code="ENOTSUP")


def test_settings_that_are_not_built(folder: Path) -> None:
    settings(folder, add_eos_token=True)
    refused(folder, "tokenizer_config.json: add_eos_token True", code="ENOTSUP")
    for fields, said in (
        ({"add_bos_token": 1}, "add_bos_token is 1"),
        ({"bos_token": [1]}, "bos_token is [1]"),
        ({"chat_template": 7}, "chat_template is 7"),
        ({"chat_template": [7]}, "chat_template is [7]"),
        ({"chat_template": [{"name": "default", "template": 7}]}, "chat_template"),
    ):
        settings(folder, **fields)
        refused(folder, f"tokenizer_config.json: {said}")


def test_where_a_template_is(folder: Path) -> None:
    def found() -> str | None:
        return describe_checkpoint(folder).texts.get("chat_template.jinja")

    assert found() is None
    settings(folder, chat_template="one")
    assert found() == "one"
    named = [{"name": "tool_use", "template": "other"}, {"name": "default", "template": "two"}]
    settings(folder, chat_template=named)
    assert found() == "two"
    settings(folder, chat_template=named[:1])
    assert found() is None
    (folder / "chat_template.jinja").write_text("three")
    assert found() == "three"


def test_a_template_of_any_size(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_text, "MAX_TEMPLATE", 100)
    settings(folder, chat_template="x" * 101)
    refused(folder, "tokenizer_config.json: chat_template", "up to 100 letters")
    (folder / "chat_template.jinja").write_text("x" * 101)
    refused(folder, "chat_template.jinja has more than 100 bytes")
    (folder / "chat_template.jinja").write_bytes(b"ab\xff")
    refused(folder, "chat_template.jinja: not UTF-8 at byte 2")
