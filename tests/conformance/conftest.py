"""Fixtures of the conformance suite: every test runs on every driver of BENCHES.

`device` is a driver in this process, cleaned for the test. A test that is to run in a real host
process too says `@pytest.mark.parametrize("transport", ["loopback", "host"], indirect=True)`.
"""

from collections.abc import Iterator

import pytest

from tests.helpers import spelled
from tests.helpers.device import Bench, Device, open_rig

NULL = Bench(
    name="null",
    device="null0",
    model=lambda folder: "null:vocab=251",
    faults_on_unwritten=True,
    host_blocks=8,
)
# The suite loads in deterministic mode, where equal means equal to the last bit.
CPU = Bench(name="cpu", device="cpu0", model=spelled.install)
BENCHES = [NULL, CPU]
CPU_INT8 = Bench(name="cpu-int8", device="cpu0", model=spelled.install, kv_dtype="int8")
KV_BENCHES = [*BENCHES, CPU_INT8]
"""For modules that say KV_DTYPES = True: what they test has to do with the bytes of KV."""


class Devices:
    """Opened devices of the session, by bench and transport: loading a model is not free."""

    def __init__(self, folders: pytest.TempPathFactory) -> None:
        self._folders = folders
        self._paths: dict[str, str] = {}
        self._open: dict[tuple[str, str], Device] = {}

    def path(self, bench: Bench) -> str:
        """Return the path of a bench's model, made once."""
        if bench.name not in self._paths:
            self._paths[bench.name] = bench.model(self._folders.mktemp(bench.name))
        return self._paths[bench.name]

    def device(self, bench: Bench, transport: str) -> Device:
        """Return a loaded device."""
        key = bench.name, transport
        if key not in self._open:
            self._open[key] = Device(open_rig(bench, transport), bench, self.path(bench))
        return self._open[key]

    def close(self) -> None:
        for device in self._open.values():
            device.rig.close()


@pytest.fixture(scope="session")
def devices(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Devices]:
    opened = Devices(tmp_path_factory)
    yield opened
    opened.close()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run every test on every driver."""
    if "bench" in metafunc.fixturenames:
        benches = KV_BENCHES if getattr(metafunc.module, "KV_DTYPES", False) else BENCHES
        metafunc.parametrize("bench", benches, ids=lambda bench: bench.name)


@pytest.fixture
def model_path(bench: Bench, devices: Devices) -> str:
    """What Load.path names."""
    return devices.path(bench)


@pytest.fixture
def transport(request: pytest.FixtureRequest) -> str:
    chosen: str = getattr(request, "param", "loopback")
    return chosen


@pytest.fixture
def device(bench: Bench, transport: str, devices: Devices) -> Device:
    opened = devices.device(bench, transport)
    opened.renew()
    return opened
