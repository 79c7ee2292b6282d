"""Handlers about models and devices. The kernel hands model files out as opaque bytes."""

import os
from pathlib import Path
from stat import S_ISREG

from drivers import base
from kernel.answer import ModelSpec
from kernel.device import DeviceState
from kernel.handler import PENDING, Caller, Done, Pending
from kernel.loading import News
from kernel.model import Model, ModelState
from kernel.sys_infer import fail_request
from kernel.system import System
from syscalls.abi import (
    MODEL_CHUNK,
    DeviceRow,
    Event,
    ListDevices,
    ListModels,
    LoadModel,
    ModelRow,
    ReadModel,
    ReadModelResult,
    Rows,
    UnloadModel,
    UnloadModelResult,
)  # fmt: skip
from syscalls.errors import EAGAIN, EBUSY, EEXIST, EINVAL, EIO, ENODEV, ENOENT, EPERM

PARTS = ("tokenizer.json", "chat_template.jinja", "config.json")


def sys_load_model(k: System, caller: Caller, args: LoadModel) -> Pending:
    """Load a model beside those that are there."""
    _only_operator(k, caller)
    device = k.device
    if args.device not in (None, device.name):
        raise ENODEV(f"there is no device {args.device}, there is {device.name}", "llmos lsdev")
    if not args.path:
        raise EINVAL("path is empty", "give the folder of an installed model")
    there = device.models.find(args.name)
    if there is not None and there.state is not ModelState.FAILED:
        hint = "unload it, or load under another name"
        raise EEXIST(f"model {args.name} is {there.state.value} already", hint)
    if len(device.models) >= k.config.max_models:
        limit = k.config.max_models
        raise EAGAIN(f"{len(device.models)} models are loaded, the limit is {limit}", "unload one")
    if device.state is DeviceState.FAILED:
        raise device.unavailable()
    if there is not None:
        device.remove(there, "it was loaded anew")
    model = device.models.add(_spec(k, args))
    model.asked = caller.session, caller.call
    return PENDING


def _spec(k: System, args: LoadModel) -> ModelSpec:
    spec = k.spec(args.name, args.path)
    if args.kv_bytes or args.num_blocks:
        spec = spec._replace(kv_bytes=args.kv_bytes, num_blocks=args.num_blocks)
    return spec._replace(
        dtype=args.dtype or spec.dtype,
        max_ctx=args.max_ctx or spec.max_ctx,
        deterministic=spec.deterministic if args.deterministic is None else args.deterministic,
        kv_dtype=spec.kv_dtype if args.kv_dtype is None else args.kv_dtype,
    )


def _only_operator(k: System, caller: Caller) -> None:
    if caller.session.uid != k.uid:
        raise EPERM("only the uid that the kernel runs as loads and unloads models")


def tell(k: System, news: News) -> None:
    """Let whoever waits for a model know how it goes with it."""
    model, what = news
    if model.asked is None:
        return
    session, call = model.asked
    if isinstance(what, base.Progress):
        if call in session.open:
            session.emit(Event.PROGRESS, call, what.phase, what.done, what.total)
        return
    model.asked = None
    if call not in session.open:
        return  # its session has ended; the model is there for others
    if what is None:
        session.finish(call, model_row(k, model))
    else:
        session.fail(call, what)


def sys_unload_model(k: System, caller: Caller, args: UnloadModel) -> Done:
    """Give a model's memory back, at once or when the step in flight has ended."""
    _only_operator(k, caller)
    model = k.device.models.find(args.name)
    if model is None:
        raise ENOENT(f"model {args.name} is not loaded; loaded are: {k.device.models}")
    if model.state in (ModelState.LOADING, ModelState.WAITING):
        raise EBUSY(f"model {args.name} is being loaded", "wait until it is up")
    contexts = model.num_contexts
    if contexts and not args.force:
        raise EBUSY(
            f"{contexts} contexts use model {args.name}",
            "end their tasks, or unload with force: they keep their ids and cannot go on",
            {"contexts": contexts},
        )
    for request, error in k.device.remove(model, "it was unloaded"):
        fail_request(k, request, error)
    return Done(UnloadModelResult(contexts))


def model_row(k: System, model: Model) -> ModelRow:
    """Return a model as list_models shows it."""
    loaded, spec = model.loaded, model.spec
    about = (
        ("", model.device, spec.dtype, 0, 0, 0, 0, [])
        if loaded is None
        else (
            loaded.arch, model.device, loaded.dtype, loaded.max_ctx, loaded.vocab,
            loaded.weights_bytes, loaded.block_bytes, list(loaded.eos_ids),
        )
    )  # fmt: skip
    num_blocks = loaded.num_blocks if loaded else 0
    return ModelRow(
        spec.name, *about, model.state.value, model.note, spec.path, num_blocks,
        model.num_contexts, loaded.kv_groups[0].dtype if loaded else spec.kv_dtype,
    )  # fmt: skip


def sys_list_models(k: System, caller: Caller, args: ListModels) -> Done:
    """List models that are loaded or on their way."""
    return Done(Rows([model_row(k, model) for model in k.device.models]))


def sys_read_model(k: System, caller: Caller, args: ReadModel) -> Done:
    """Return a chunk of one of the files that a client needs for text."""
    model = k.model(args.model)
    if args.part not in PARTS:
        raise EINVAL(f"a model has the parts {', '.join(PARTS)}, not {args.part}")
    path = Path(model.spec.path) / args.part
    try:
        with open(path, "rb", opener=_at_once) as file:
            about = os.fstat(file.fileno())
            if not S_ISREG(about.st_mode):
                raise EIO(f"cannot read {args.part} of {model.name}: it is no file")
            total = about.st_size
            if args.offset > total:
                raise EINVAL(f"{args.part} has {total} bytes, no offset {args.offset}")
            file.seek(args.offset)
            return Done(ReadModelResult(file.read(MODEL_CHUNK), total, model.number))
    except FileNotFoundError:
        raise ENOENT(f"model {model.name} has no {args.part}") from None
    except OSError as error:
        raise EIO(f"cannot read {args.part} of {model.name}: {error.strerror}") from None


def _at_once(path: str | Path, flags: int) -> int:
    """Open a file; what is a pipe is not waited for, or the kernel would wait."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)


def sys_list_devices(k: System, caller: Caller, args: ListDevices) -> Done:
    """List devices."""
    device, ready = k.device, k.device.ready
    row = DeviceRow(
        device.name,
        ready.driver if ready else "",
        device.state.value,
        device.epoch,
        device.link.host_pid,
        ready.mem_total if ready else 0,
        ready.mem_free if ready else 0,
        device.note or (ready.description if ready else ""),
    )
    return Done(Rows([row]))
