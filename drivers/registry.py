"""Registry: from a device's name to the module of its driver, imported only when it is opened."""

import re
from importlib import import_module

from drivers import base

MODULES = {"null": "drivers.null", "cpu": "drivers.cpu.driver"}
"""Kinds that are built."""
PLANNED = ("cuda", "tpu")
"""Kinds whose names are taken."""


def open_driver(device: str, emit: base.Emit, bulk: memoryview, host: int) -> base.Driver:
    """Return the driver of a device such as cpu0; UNSUPPORTED if there is none of its kind."""
    match = re.fullmatch(r"([a-z]+)[0-9]{1,3}", device)
    kind = match[1] if match else ""
    if kind not in MODULES:
        known = ", ".join(f"{name}0" for name in MODULES)
        what = "is not built yet" if kind in PLANNED else "is no device"
        raise base.DriverFault(
            base.FaultKind.UNSUPPORTED, f"{device} {what}; there are drivers for {known}"
        )
    factory: base.DriverFactory = import_module(MODULES[kind]).open_driver
    return factory(emit, bulk, host)
