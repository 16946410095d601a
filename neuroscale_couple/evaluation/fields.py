"""Fields for ParaView: VTU files and the PVD file that puts them in time."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import meshio
import numpy as np
import numpy.typing as npt

from neuroscale_couple.checkpoint import write_atomically
from neuroscale_couple.values import F64, Layout, Points, Reply

log = logging.getLogger("neuroscale_couple.results")

Values = Mapping[str, npt.NDArray[Any]]


class Series:
    """VTU files `<name>_<window>.vtu` in a folder and `<name>.pvd`, which lists them by time."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = Path(folder), name
        self.times: dict[int, float] = {}

    def path(self, window: int) -> Path:
        """File of a window."""
        return self.folder / f"{self.name}_{window:04d}.vtu"

    def write(self, window: int, time: float, mesh: meshio.Mesh) -> Path:
        """Write the mesh of one window and the PVD file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        mesh.write(self.path(window))
        self.times[window] = float(time)
        self._write_pvd()
        return self.path(window)

    def truncate(self, windows: int) -> None:
        """Forget windows from this one on; read back the times of those that stay."""
        pvd = self.folder / f"{self.name}.pvd"
        if not pvd.exists():
            return
        try:
            known = windows_of(self.folder, self.name)
        except (ElementTree.ParseError, ValueError, KeyError) as error:
            log.warning("%s cannot be read (%s); it is begun anew", pvd, error)
            known = []
        self.times = {window: time for window, time, _ in known if window < windows}
        self._write_pvd()

    def _write_pvd(self) -> None:
        root = ElementTree.Element("VTKFile", type="Collection", version="0.1")
        collection = ElementTree.SubElement(root, "Collection")
        for window, time in sorted(self.times.items()):
            ElementTree.SubElement(collection, "DataSet", timestep=repr(time), part="0", file=self.path(window).name)
        text: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
        write_atomically(self.folder / f"{self.name}.pvd", text)  # `truncate` reads it after a crash


def point_cloud(coordinates: F64, values: Values) -> meshio.Mesh:
    """A mesh of vertices with values. coordinates: float64 [n, 2 or 3]; values: name -> [n] or [n, components]."""
    n, dimension = coordinates.shape
    at = np.zeros((n, 3))
    at[:, :dimension] = coordinates
    return meshio.Mesh(at, [("vertex", np.arange(n)[:, None])], point_data=dict(values))


class PointFields:
    """Writes who answered each point, why, the estimated error and the outputs, when a window is committed.

    points: those of this rank; every: write each n-th window, 0: none
    """

    def __init__(self, folder: Path, comm: Any, points: Points, outputs: Layout, every: int = 1) -> None:
        self.series = Series(Path(folder), "points")
        self.broken = False
        self.comm, self.points, self.outputs, self.every = comm, points, outputs, every

    def write(self, window: int, time: float, reply: Reply) -> None:
        """Collective: yes."""
        if not self.every or (window + 1) % self.every:
            return
        mine = (self.points.ids, self.points.coordinates, reply.source, reply.reason, reply.error, reply.outputs)
        ranks = [mine] if self.comm is None or self.comm.size == 1 else self.comm.gather(mine, root=0)
        if ranks is None or self.broken:
            return
        ids, coordinates, source, reason, error, outputs = (np.concatenate(part) for part in zip(*ranks, strict=True))
        order = np.argsort(ids)
        values: dict[str, npt.NDArray[Any]] = {
            "point": ids[order],
            "source": source[order].astype(np.int32),
            "reason": reason[order].astype(np.int32),
            "estimated_error": error[order],
            **self.outputs.unpack(outputs[order]),
        }
        try:
            self.series.write(window, time, point_cloud(coordinates[order], values))
        except OSError as error:  # a full disk must not end the run, and on rank 0 alone at that
            self.broken = True
            log.warning(
                "%s: fields of window %d cannot be written (%s); the run goes on without them",
                self.series.folder, window, error.strerror or error,
            )  # fmt: skip

    def truncate(self, windows: int) -> None:
        """Forget windows from this one on."""
        if self.comm is None or self.comm.rank == 0:
            self.series.truncate(windows)


def read_points(path: Path) -> tuple[F64, dict[str, npt.NDArray[Any]]]:
    """Coordinates [n, 3] and values of a file that `PointFields` wrote."""
    mesh = meshio.read(path)
    return np.asarray(mesh.points, dtype=np.float64), dict(mesh.point_data)


def windows_of(folder: Path, name: str) -> Sequence[tuple[int, float, Path]]:
    """(window, time, file) of a series, from its PVD file; empty if there is none."""
    pvd = folder / f"{name}.pvd"
    if not pvd.exists():
        return []
    found = []
    for entry in ElementTree.parse(pvd).iter("DataSet"):
        file = entry.attrib["file"]
        window = int(file.removesuffix(".vtu").rpartition("_")[2])
        found.append((window, float(entry.attrib["timestep"]), folder / file))
    return sorted(found)
