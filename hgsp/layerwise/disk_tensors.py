"""Tensors that wait on disk until they are needed again."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, MutableMapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor


class DiskTensors(MutableMapping[str, Tensor]):
    """Tensors by name in files of one folder, so that none of them stays in memory. ``close`` removes the folder.

    Those that are in the folder already are among them; one that is not there is made for the first.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names = dict.fromkeys(file.stem for file in sorted(folder.glob("*.safetensors")))

    def __setitem__(self, name: str, tensor: Tensor) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.contiguous()}, self._file(name))
        self._names[name] = None

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return load_file(self._file(name))[name]

    def __delitem__(self, name: str) -> None:
        del self._names[name]
        self._file(name).unlink()

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def close(self) -> None:
        self._names.clear()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _file(self, name: str) -> Path:
        return self._folder / f"{name}.safetensors"
