"""The pruning plan: the groups that every layer keeps, as data to print, plot, save and apply."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from hgsp.console.json_files import read_json_file
from hgsp.console.portable_paths import portable
from hgsp.console.schemas import Count
from hgsp.environment import install_command, write_atomically
from hgsp.errors import InputError
from hgsp.models.geometry import Geometry, LayerShape
from hgsp.models.kinds import DENSE_KINDS, GROUP_KINDS, GroupKind, kinds_among

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class LayerKeep:
    """Sorted dense indices of the groups that one layer keeps, and whether it keeps linear attention.

    Without any of them the layer is removed whole. Slots of experts are numbered from the weakest channel of every
    expert; ``expert_channels`` are the channels that each kept expert has in the kept slots. Without them experts keep
    all channels.
    """

    kv_groups: tuple[Count, ...]
    mlp_channels: tuple[Count, ...]
    experts: tuple[Count, ...] = ()
    expert_slots: tuple[Count, ...] = ()
    expert_channels: tuple[tuple[Count, ...], ...] = ()
    linear_attention: bool = field(default=False, kw_only=True)

    @property
    def shape(self) -> LayerShape:
        return LayerShape(*map(len, self.groups.values()), linear_attention=self.linear_attention)

    @property
    def groups(self) -> dict[str, tuple[int, ...]]:
        """The indices of every kind, by its name."""
        return {kind.name: getattr(self, kind.kept) for kind in GROUP_KINDS}

    def as_json(self) -> dict[str, Any]:
        """Return the content by its keys in a plan; experts and linear attention are left out where there are none."""
        kept: dict[str, Any] = {
            kind.kept: self.groups[kind.name] for kind in GROUP_KINDS if kind in DENSE_KINDS or self.groups[kind.name]
        }
        if self.expert_channels:
            kept["expert_channels"] = self.expert_channels
        return kept | ({"linear_attention": True} if self.linear_attention else {})


@dataclass(frozen=True, repr=False)
class PrunePlan:
    """Kept groups of every layer of the dense model; the only input of surgery.

    Args:
        budget_params: parameters to remove at most.
        removed_params: parameters that surgery removes, norms of removed layers included.
        provenance: JSON types only.
        writer_bias: every ``o_proj`` and ``down_proj`` that stays gets a bias if the dense model has none.
        geometry: of the dense model; not in the JSON file.

    Raises:
        InputError: more parameters removed than budgeted, indices that are not sorted, distinct and non-negative, or
            other numbers of experts and slots than of their channels.
    """

    layers: tuple[LayerKeep, ...]
    budget_params: Count
    removed_params: Count
    provenance: Mapping[str, Any] = field(default_factory=dict)
    writer_bias: bool = False
    geometry: Geometry | None = field(default=None, compare=False, metadata={"stored": False})

    def __post_init__(self) -> None:
        if self.removed_params > self.budget_params:
            raise InputError(
                expected=f"a plan that removes at most {self.budget_params} parameters",
                got=f"{self.removed_params} removed",
                remedy="select again from the scores",
            )
        for index, keep in enumerate(self.layers):
            named = [(kind.kept, keep.groups[kind.name]) for kind in GROUP_KINDS]
            for name, indices in [*named, *(("expert_channels", channels) for channels in keep.expert_channels)]:
                if list(indices) != sorted(set(indices)) or (indices and indices[0] < 0):
                    raise InputError(
                        expected=f"sorted, distinct, non-negative {name} in layer {index}",
                        got=f"{indices[:8]}...",
                        remedy="write the plan again",
                    )
            sizes = [len(channels) for channels in keep.expert_channels]
            if sizes and sizes != [len(keep.expert_slots)] * len(keep.experts):
                raise InputError(
                    expected=f"{len(keep.expert_slots)} channels of {len(keep.experts)} experts each in layer {index}",
                    got=f"{sizes[:8]}...",
                    remedy="write the plan again",
                )

    @property
    def removed_layers(self) -> tuple[int, ...]:
        """Dense indices of the layers that are removed whole."""
        return tuple(index for index, keep in enumerate(self.layers) if keep.shape == LayerShape(0, 0))

    def write_json(self, path: Path) -> None:
        content = {
            "layers": [keep.as_json() for keep in self.layers],
            "budget_params": self.budget_params,
            "removed_params": self.removed_params,
            "provenance": portable(self.provenance),
            "writer_bias": self.writer_bias,
        }
        write_atomically(path, json.dumps(content))

    @classmethod
    def read_json(cls, path: Path) -> PrunePlan:
        """Read a file of ``write_json``; the plan does not know the dense model's geometry.

        Raises:
            InputError: no file, or one that is no plan; names the field.
        """
        return read_json_file(
            path, cls, "a plan written by this tool", "restore the file, or select again from the scores"
        )

    def __repr__(self) -> str:
        share = "" if self.geometry is None else f" ({shares_of(self.removed_params, self.geometry)})"
        whole = ", ".join(map(str, self.removed_layers)) or "none"
        return (
            f"PrunePlan({len(self.layers)} layers, {self.removed_params:,} parameters removed{share}, "
            f"whole layers removed: {whole})"
        )

    def __str__(self) -> str:
        console = Console(width=80, color_system=None, markup=False)
        with console.capture() as captured:
            console.print(self.table())
        return captured.get().rstrip()

    def table(self) -> Table:
        """Return the kept groups of every kind and the share of parameters of every layer."""
        table = Table(title=repr(self))
        for heading in self._headings:
            table.add_column(heading, justify="right")
        for row in self._rows():
            table.add_row(*row)
        return table

    def plot(self) -> Figure:
        """Draw the kept share of the groups of every kind over the layers that have such groups.

        Raises:
            InputError: matplotlib is missing, or the plan does not know the dense model's geometry.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise InputError(
                expected="matplotlib, which draws the plan", got="none", remedy=install_command("plots")
            ) from error
        if self.geometry is None:
            raise InputError(
                expected="a plan that knows the dense model's geometry",
                got="one that was read from a file",
                remedy="use dataclasses.replace(plan, geometry=geometry_of(model))",
            )
        figure = Figure(figsize=(8, 3), layout="constrained")
        axes = figure.subplots()
        pairs = list(zip(self.layers, self.geometry.shapes, strict=True))
        for kind in self._kinds:
            sizes = [(keep.shape.size_of(kind.name), dense.size_of(kind.name)) for keep, dense in pairs]
            shares = {index: _share(*size) for index, size in enumerate(sizes) if size[1] or kind in DENSE_KINDS}
            axes.plot(list(shares), list(shares.values()), marker="o", label=kind.label)
        axes.set(xlabel="layer", ylabel="kept", ylim=(0, 1.05), title=repr(self))
        axes.yaxis.set_major_formatter("{x:.0%}")
        axes.legend()
        return figure

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{heading}</th>" for heading in self._headings)
        rows = ("".join(f"<td>{cell}</td>" for cell in row) for row in self._rows())
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        return f"<table><caption>{self!r}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    @property
    def _kinds(self) -> tuple[GroupKind, ...]:
        """The kinds of groups of the dense model, or where it is unknown, of those that are kept."""
        if self.geometry is not None:
            return self.geometry.kinds
        return kinds_among({name for keep in self.layers for name, indices in keep.groups.items() if indices})

    @property
    def _headings(self) -> tuple[str, ...]:
        return ("layer", *(kind.label for kind in self._kinds), "parameters kept")

    def _rows(self) -> Iterator[tuple[str, ...]]:
        """Cells under the headings; the dense sizes are left out where they are unknown."""
        for index, keep in enumerate(self.layers):
            kept = keep.shape
            sizes = [kept.size_of(kind.name) for kind in self._kinds]
            if self.geometry is None:
                yield str(index), *map(str, sizes), ""
                continue
            dense = self.geometry.shapes[index]
            share = _share(self.geometry.layer_params(kept), self.geometry.layer_params(dense))
            cells = (f"{size} of {dense.size_of(kind.name)}" for size, kind in zip(sizes, self._kinds, strict=True))
            yield str(index), *cells, f"{share:.1%}"


def shares_of(params: int, geometry: Geometry) -> str:
    """Return parameters as shares of all parameters and of those of the decoder layers, in words."""
    return f"{params / geometry.total_params:.2%} of all, {params / geometry.decoder_params:.2%} of the decoder layers"


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
