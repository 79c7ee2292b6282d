"""What the codes of errors mean: why each comes about, and what a person can do.

`llmos explain` shows it, docs/errors.md is made of it, and there is an entry for every errno of
the ABI and every exit code of the commands.
"""

from dataclasses import dataclass

from syscalls.errors import BY_ERRNO, Errno
from userland import exits


@dataclass(frozen=True, slots=True)
class Entry:
    """Causes and next steps, each a line."""

    causes: tuple[str, ...]
    steps: tuple[str, ...]


OTHERS = {"ENETUNREACH": (101, "The source of a model cannot be reached.")}
"""Codes that commands use and the ABI does not know: number and meaning."""
UNBUILT = ("it is reserved: no kernel of this version raises it",)

ENTRIES: dict[str, Entry] = {
    "EPERM": Entry(
        ("the socket's directory, or the kernel, is another user's",
         "the directory of the socket is open to others (mode other than 700)",
         "the call is for the uid that the kernel runs as, or pid 1 was to be killed",
         "the context was opened through a grant without the right that the message names",
         "a task was to leave a group or a limit that whoever asks for it stands below, too",
         "a nice below one's own is for the user whom the kernel runs as"),
        ("llmos doctor says whose directory it is", "chmod 700 DIRECTORY, or set LLMOS_HOME")),
    "ENOENT": Entry(
        ("no model of that name is loaded or installed", "you have no save of that name",
         "a file that was named is not there"),
        ("llmos ctx saves lists what you have saved", "llmos status lists loaded models",
         "llmos pull NAME installs, llmos load NAME loads")),
    "ESRCH": Entry(
        ("the task has ended, or never was", "it is another user's: the answer is the same"),
        ("llmos ps lists the tasks",)),
    "EIO": Entry(
        ("the driver died three times in the same request",
         "the model computed numbers that are none (NaN)",
         "a file could not be read or written",
         "the store has failed: its keys are lost, or others could have read them"),
        ("llmos status shows the device",
         "the kernel's log has the reason; llmos doctor says where",
         "ask again; with the same text on and on, llmos down && llmos up")),
    "E2BIG": Entry(
        ("prompt and answer do not fit into the context's limit",
         "an argument or a message is larger than the ABI allows"),
        ("cut the input on purpose: | head -c 8000", "begin a new context, or trim this one",
         "ask for less: -n")),
    "EAGAIN": Entry(
        ("the kernel is stopping, or a device is still loading its model",
         "a table is full: tasks, contexts, calls, sessions, models",
         "a program does not read what it has asked for"),
        ("try again in a moment; llmos status says what is loading",
         "the message names the limit: llmos up --set KEY=VALUE raises it")),
    "ENOMEM": Entry(
        ("this request alone needs more KV blocks than the whole pool has beside pinned ones",
         "contexts together would have more blocks than may be promised (LIMIT of llmos free)"),
        ("ask for less (-n), or shorten the prompt", "llmos free shows the pool",
         "llmos ctx ls shows who has blocks, and which contexts are pinned",
         "llmos down && llmos up --kv-mem SIZE makes it larger",
         "--host-mem SIZE and --set overcommit=N let contexts have more in all")),
    "EBUSY": Entry(
        ("the context has an infer that has not ended", "the model is in use, or being loaded",
         "another kernel runs at the same place"),
        ("wait for it, or cancel it: kill -INT PID", "llmos status shows what is there")),
    "EEXIST": Entry(
        ("the name or the handle is taken",), ("choose another name, or free what has it",)),
    "ENODEV": Entry(
        ("there is no such device", "the device has failed: its driver died too often",
         "its model does not fit into memory"),
        ("llmos status names the devices and says why", "llmos doctor looks at the machine",
         "llmos down && llmos up")),
    "EINVAL": Entry(
        ("an argument is out of its range; the message says which and what it may be",
         "the model has no tokenizer, or no chat template for turns"),
        ("look at the range in the message", "docs/syscalls.md lists every argument")),
    "ENOSPC": Entry(
        ("the disk is full, or a quota is",),
        ("llmos doctor shows the free space", "set LLMOS_HOME to a directory on another disk")),
    "EPIPE": Entry(
        ("the server of a port has ended, or given the port up, before it answered",
         "a subscription was ended while a message of it was waited for"),
        ("the message says whether it had taken the call: what it did then is not known",
         "llmos ports shows which ports there are; start the server again")),
    "EDEADLK": Entry(
        ("the server of the port waits for a reply of the caller, maybe through others: with this "
         "call none of them would ever go on",),
        ("answer the message first, then call", "llmos ps shows who waits for which port")),
    "EPROTO": Entry(
        ("client and kernel are of versions that do not understand each other",
         "a program speaks to the socket that is no client of the kernel"),
        ("llmos doctor compares the versions", "llmos down && llmos up starts this one")),
    "ENOTSUP": Entry(
        ("the call is reserved, and not built in this version",
         "the kernel was started without a folder for saves (state_dir)",
         "the model's architecture, or a format of its file, is not built"),
        ("docs/syscalls.md says which calls are built",)),
    "ECONNRESET": Entry(
        ("no kernel is running", "it has stopped or crashed, and its contexts are gone",
         "it was stopped with everything saved, and contexts come back with the next one",
         "the kernel has closed the session of a program that did not read for long"),
        ("llmos up starts one", "the kernel's log says why it ended: llmos doctor says where")),
    "ETIMEDOUT": Entry(
        ("the kernel is there and does not answer", "--timeout is over",
         "a message was not answered, or none came, in the time that the call gave it"),
        ("try again; the message names the pid of a kernel that hangs",
         "give it more time: --timeout")),
    "ESTALE": Entry(
        ("a ticket has been used, or is too old", "a program repeats a call of long ago"),
        ("spawn again: a ticket is for one program, once",)),
    "EDQUOT": Entry(
        ("a limit of the task, of one above it, of its group or user is reached; the message "
         "names it", "pinned contexts would hold more than half of the KV pool",
         "the task has as many grants as it may have"),
        ("llmos limit shows all limits and what is used; who is above a task raises its limits",
         "unpin another context: ctx unpin in llmsh, unpin in the library",
         "retain it for some time, or leave it: its KV comes back by itself",
         "llmos free shows what is pinned",
         "revoke grants, or start the kernel with a larger --max-grants")),
    "ECANCELED": Entry(
        ("the task was sent INT, or has been ended: kill", "the kernel was stopped meanwhile",
         "an earlier call failed that this one needs"),
        ("look at the error before it", "llmos ps shows whether the task is there")),
    "EBADCTX": Entry(
        ("the context has been freed, or went with its task",
         "it is another task's: the answer is the same",
         "the id of a grant is wrong, is for another task, or the grant is over: likewise"),
        ("make a context, and keep the task that owns it",
         "ask for another grant whoever gave the id")),
    "EREVOKED": Entry(
        ("the grant through which the context was opened has been taken back, or its task ended",),
        ("free the context, and ask for another grant",)),
    "ECORRUPT": Entry(
        ("a file is damaged, or is not what its checksum says", "so is a save, or it was exchanged",
         "a model's files contradict each other"),
        ("llmos pull NAME fetches a model again", "llmos doctor looks at the installed models")),
}  # fmt: skip

ENTRIES["ENETUNREACH"] = Entry(
    ("the network or the package index cannot be reached", "LLMOS_OFFLINE forbids it"),
    ("llmos models lists what is on this machine", "unset LLMOS_OFFLINE"),
)

EXITS: dict[int, str] = {
    0: "ok",
    exits.FAILED: "failed; the message says why",
    exits.USAGE: "the command line is wrong; --help shows how it is written",
    3: "not found: a task, a context, a model",
    exits.CUT: "the answer was cut, and --fail-on length was given",
    exits.NO_KERNEL: "no kernel can be reached; llmos up starts one",
    exits.BUG: "a bug of ours; a report is where the message says, or in the kernel's log",
    74: "input or output failed: a disk, a pipe, a device",
    75: "try again: busy, full, or still loading",
    77: "not permitted",
    exits.BAD_SETUP: "the configuration or the machine is unfit; llmos config check, llmos doctor",
    exits.TIMED_OUT: "took too long",
    126: "run: the program cannot be run",
    127: "run: there is no such program; in llmsh: no such command",
    exits.INTERRUPTED: "Ctrl-C, and so signal 2",
    exits.PIPE_CLOSED: "who read the output has gone, and so signal 13",
}


def number_of(name: str) -> int:
    """Return the number of an errno."""
    return OTHERS[name][0] if name in OTHERS else int(Errno[name])


def meaning(name: str) -> str:
    """Return the sentence that the ABI has for an errno."""
    if name in OTHERS:
        return OTHERS[name][1]
    text = BY_ERRNO[int(Errno[name])].__doc__ or ""
    return text.strip().split("\n")[0]


def exit_meaning(code: int) -> str | None:
    """Return what an exit code of a command means, None for one that none has."""
    if code in EXITS:
        return EXITS[code]
    return f"ended by signal {code - 128}" if 128 < code <= 192 else None
