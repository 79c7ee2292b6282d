"""Registry: from a device's name to the module of its driver, imported only when it is opened."""

import re
from importlib import import_module

from drivers import base

MODULES = {"null": "drivers.null", "cpu": "drivers.cpu.driver"}
"""Kinds that are built."""


def open_driver(device: str, emit: base.Emit, bulk: memoryview) -> base.Driver:
    """Return the driver of a device such as cpu0; UNSUPPORTED if there is none of its kind."""
    match = re.fullmatch(r"([a-z]+)[0-9]+", device)
    module = MODULES.get(match[1]) if match else None
    if module is None:
        known = ", ".join(f"{kind}0" for kind in MODULES)
        raise base.DriverFault(
            base.FaultKind.UNSUPPORTED, f"there is no driver for {device}; built are {known}"
        )
    factory: base.DriverFactory = import_module(module).open_driver
    return factory(emit, bulk)
