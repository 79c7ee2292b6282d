"""key: keep a copy of the keys that saves are under, and bring it back. No kernel takes part."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from userland.desk import Desk, pass_desk
from userland.exits import Failure
from userland.passphrase import asking, passphrase_option

_HELP = {"help_option_names": ["-h", "--help"]}


@click.group(context_settings=_HELP)
def key() -> None:
    """Keep a copy of the keys, and bring it back.

    \b
    Examples:
      llmos key backup ~/keys.backup
      llmos key restore ~/keys.backup

    Saved contexts are ciphertext. Without their keys nobody can read them: keep a copy, and keep
    it apart from the copies of the saves.
    """


_file = click.argument("file", type=click.Path(path_type=Path))
_keys_dir = click.option(
    "--keys-dir", type=click.Path(path_type=Path), metavar="DIR", help="Where the keys are."
)


@key.command(context_settings=_HELP)
@_file
@_keys_dir
@passphrase_option
@click.option("--force", is_flag=True, help="Replace the file if it is there.")
@pass_desk
def backup(
    desk: Desk, file: Path, keys_dir: Path | None, passphrase_file: Path | None, force: bool
) -> None:
    """Write the root key and the keyring to a file, under a passphrase.

    \b
    Examples:
      llmos key backup ~/keys.backup
      llmos key backup /media/usb/keys.backup --passphrase-file ./passphrase
      llmos key backup ~/keys.backup --force

    The passphrase is asked for twice. Make a new backup after somebody new has saved something:
    their key is not in an older one. A backup from before somebody's data was erased still has
    their key: destroy it, too.
    """
    from drivers.store.backup import write_backup

    with _as_failure():
        ask = asking(passphrase_file, twice=True)
        kept = write_backup(keys_dir or _default(), file, ask, force)
    desk.note(f"saved {kept.path}: root key {kept.name}, keys of {_owners(kept.num_owners)}")


@key.command(context_settings=_HELP)
@_file
@_keys_dir
@passphrase_option
@click.option("--force", is_flag=True, help="Set other keys aside that are there.")
@pass_desk
def restore(
    desk: Desk, file: Path, keys_dir: Path | None, passphrase_file: Path | None, force: bool
) -> None:
    """Put the keys of a backup in their place.

    \b
    Examples:
      llmos key restore ~/keys.backup
      llmos key restore ~/keys.backup --passphrase-file ./passphrase
      llmos key restore ~/keys.backup --keys-dir /etc/llmos/keys

    The keyring of the backup is taken only where there is none: one that is there is newer. Start
    the kernel afterwards; one that runs has its keys already.
    """
    from drivers.store.backup import restore_backup

    with _as_failure():
        ask = asking(passphrase_file, twice=False)
        kept = restore_backup((keys_dir or _default()).absolute(), file, ask, force)
    ring = {
        "kept": "the keyring there is kept",
        "restored": f"with it keys of {_owners(kept.num_owners)}",
        "none": "there is no keyring, in the backup neither",
    }[kept.keyring]
    desk.note(f"restored {kept.path}: root key {kept.name}, {ring}")


def _owners(count: int) -> str:
    return "one owner" if count == 1 else f"{count} owners"


def _default() -> Path:
    from drivers.store.places import default_keys_dir

    return default_keys_dir()


@contextmanager
def _as_failure() -> Iterator[None]:
    from drivers.store.backup import BackupError

    try:
        yield
    except BackupError as error:
        raise Failure(error.message, error.hint, code=error.code) from None
