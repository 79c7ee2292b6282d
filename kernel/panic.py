"""KernelPanic: our own bug. It stops the kernel with an epitaph; nothing catches it but main."""


class KernelPanic(Exception):
    """A state that the kernel's own rules exclude; the message tells the object's story."""


def check(condition: bool, story: str) -> None:
    """Panic with `story` unless `condition` holds (unlike assert, also under -O)."""
    if not condition:
        raise KernelPanic(story)
