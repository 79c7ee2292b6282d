"""Handlers about models and devices. The kernel hands model files out as opaque bytes."""

from pathlib import Path

from kernel.handler import Caller, Done
from kernel.system import System
from syscalls.abi import (
    MODEL_CHUNK,
    DeviceRow,
    ListDevices,
    ListModels,
    ModelRow,
    ReadModel,
    ReadModelResult,
    Rows,
)  # fmt: skip
from syscalls.errors import EINVAL, EIO, ENOENT

PARTS = ("tokenizer.json", "chat_template.jinja", "config.json")


def sys_list_models(k: System, caller: Caller, args: ListModels) -> Done:
    """List loaded models."""
    device, loaded = k.device, k.device.loaded
    if loaded is None:
        return Done(Rows([]))
    row = ModelRow(
        device.spec.name, loaded.arch, device.name, loaded.dtype, loaded.max_ctx, loaded.vocab,
        loaded.weights_bytes, loaded.block_bytes, list(loaded.eos_ids),
    )  # fmt: skip
    return Done(Rows([row]))


def sys_read_model(k: System, caller: Caller, args: ReadModel) -> Done:
    """Return a chunk of one of the files that a client needs for text."""
    device = k.model_device(args.model)
    if args.part not in PARTS:
        raise EINVAL(f"a model has the parts {', '.join(PARTS)}, not {args.part}")
    path = Path(device.spec.path) / args.part
    try:
        with path.open("rb") as file:
            total = file.seek(0, 2)
            if args.offset > total:
                raise EINVAL(f"{args.part} has {total} bytes, no offset {args.offset}")
            file.seek(args.offset)
            return Done(ReadModelResult(file.read(MODEL_CHUNK), total))
    except FileNotFoundError:
        raise ENOENT(f"model {device.spec.name} has no {args.part}") from None
    except OSError as error:
        raise EIO(f"cannot read {args.part} of {device.spec.name}: {error.strerror}") from None


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
