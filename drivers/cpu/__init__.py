"""The CPU as a device: torch, synchronous; `drivers.cpu.driver.open_driver` opens it."""
