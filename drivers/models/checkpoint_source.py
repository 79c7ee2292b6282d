"""The tensors of a Hugging Face folder, as a source of weights."""

from pathlib import Path

import torch
from torch import Tensor

from drivers.models.checkpoint import Checkpoint, read_checkpoint
from drivers.models.checkpoint_config import GEMMA
from drivers.models.errors import FETCH, ModelError
from drivers.models.safetensors_file import SafetensorsFile
from drivers.models.tensors import ROPE_FACTORS, Shapes


class CheckpointSource:
    """A folder whose files are open. Norms of Gemma come as GGUF has them, with 1 added."""

    def __init__(self, folder: Path) -> None:
        checkpoint = read_checkpoint(folder)
        self.config = checkpoint.config
        self._factors, self._places = checkpoint.rope_factors, checkpoint.places
        self.shapes: Shapes = {name: p.tensor.shape for name, p in self._places.items()}
        if self._factors is not None:
            self.shapes = {**self.shapes, ROPE_FACTORS: (len(self._factors),)}
        self._files: dict[Path, SafetensorsFile] = {}
        try:
            self._open(checkpoint)
        except BaseException:
            self.close()
            raise

    def rows(self, name: str, first: int, end: int) -> Tensor:
        if name == ROPE_FACTORS:
            assert self._factors is not None
            return torch.tensor(self._factors[first:end])
        place = self._places[name]
        rows = torch.from_numpy(self._files[place.path].float32(place.tensor.name, first, end))
        if self.config.arch == GEMMA and len(self.shapes[name]) == 1:
            rows += 1
        return rows

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def _open(self, checkpoint: Checkpoint) -> None:
        for name, place in checkpoint.places.items():
            file = self._files.get(place.path) or SafetensorsFile(place.path)
            self._files[place.path] = file
            if file.tensors.get(place.tensor.name) != place.tensor:
                what = f"{place.path.name}: {name} has another place than a moment ago"
                raise ModelError("ECORRUPT", what, FETCH)
