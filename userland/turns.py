"""What a person says becomes a turn of the model's chat template; text, if it has none.

A base model completes whatever stands before, and has never seen turns. That is said, once for a
context, because its answers look like nonsense to whoever expected a chat.
"""

from collections.abc import Callable

from syscalls import Context, Task
from userland.exits import Failure


def say_user(task: Task, context: Context, text: str, note: Callable[[str], None]) -> None:
    """Add a prompt to a context: as a user turn, or as it is for a model without turns."""
    if has_turns(task, context.model):
        context.user(text)
        return
    if context.length == 0:
        note(f"{context.model} has no chat template: it completes the text as it is")
    context.append(text)


def check_system(task: Task, model: str) -> None:
    """Raise Failure if the model has no turns, and so no place for a system prompt."""
    if not has_turns(task, model):
        raise Failure(
            f"{model} has no chat template, so it takes no system prompt",
            "put what it should know in front of the prompt",
            code="ENOTSUP",
        )


def has_turns(task: Task, model: str) -> bool:
    """Return whether a loaded model has a chat template."""
    known = task.text_model(model)
    return known is None or known.has_template  # without a tokenizer the first text says why not
