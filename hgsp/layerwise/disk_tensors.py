"""Tensors by name on disk."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from hgsp.environment import file_sha256, remove_folder, replacing


class DiskTensors(MutableMapping[str, Tensor]):
    """A mapping of names to tensors in the files of one folder, none of which stays in memory.

    Tensors that are in the folder already belong to it. The folder is made for the first tensor.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names = dict.fromkeys(file.stem for file in sorted(folder.glob("*.safetensors")) if file.is_file())

    def __setitem__(self, name: str, tensor: Tensor) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with replacing(self._file(name)) as partial:
            save_file({name: tensor.contiguous()}, partial)
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
        """Remove the folder."""
        self._names.clear()
        remove_folder(self._folder)

    def sha256(self, name: str) -> str | None:
        """Return the hash of a tensor's file, None without one."""
        return file_sha256(self._file(name)) if name in self else None

    def _file(self, name: str) -> Path:
        return self._folder / f"{name}.safetensors"
