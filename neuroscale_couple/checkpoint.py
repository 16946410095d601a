"""Checkpoints that survive `kill -9` at any moment: written in two phases, verified when read.

    window_000012/rank_0.safetensors ...   first every rank's arrays, each atomically and with fsync
    manifest.json                          then, once all ranks are done, the list of complete windows

A window that the manifest does not name does not exist. The last two windows are kept.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import uuid
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from neuroscale_couple import parallel
from neuroscale_couple.errors import CheckpointError

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]
Parts = Mapping[str, Arrays]

KEEP = 2
"""Complete windows that are kept."""

log = logging.getLogger("neuroscale_couple.checkpoint")


class DamagedFileError(Exception):
    """A file is torn, altered or not one of ours; the message says which and why."""


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that after a crash it holds either its old content or all of the new one.

    Temporary file beside it, fsync, rename, fsync of the folder. Raises: OSError.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def pack_arrays(arrays: Arrays, metadata: Mapping[str, str] | None = None) -> bytes:
    """Arrays as the bytes of a safetensors file with a checksum of the arrays in its metadata."""
    from safetensors.numpy import save

    ready = {name: np.asarray(array, order="C") for name, array in sorted(arrays.items())}
    return save(ready, metadata=dict(metadata or {}) | {"crc32": _checksum(ready)})


def read_arrays(path: Path) -> tuple[dict[str, Array], dict[str, str]]:
    """Arrays and metadata of a file from `pack_arrays`. Raises: DamagedFileError."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        data = path.read_bytes()
        metadata = _metadata(data)
        arrays: dict[str, Array] = load(data)
    except (OSError, ValueError, SafetensorError) as error:
        raise DamagedFileError(f"{path} cannot be read ({error})") from error
    if metadata.get("crc32") != _checksum(arrays):
        raise DamagedFileError(f"{path} does not hold what was written (wrong checksum)")
    return arrays, metadata


def _metadata(data: bytes) -> dict[str, str]:
    """Metadata in the header of a safetensors file. Raises: ValueError."""
    if len(data) < 8:
        raise ValueError(f"{len(data)} bytes are too few for a header")
    length = int.from_bytes(data[:8], "little")
    if length > len(data) - 8:
        raise ValueError("the header is cut off")
    header = json.loads(data[8 : 8 + length])
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    if not isinstance(metadata, dict):
        raise ValueError("no metadata")
    return metadata


def _checksum(arrays: Arrays) -> str:
    value = 0
    for name in sorted(arrays):
        array = np.asarray(arrays[name], order="C")
        value = zlib.crc32(f"{name} {array.dtype.str} {array.shape}".encode(), value)
        value = zlib.crc32(array.reshape(-1).view(np.uint8).data, value)
    return f"{value:08x}"


def read_manifest(path: Path) -> dict[str, Any]:
    """The list of complete windows, newest first, the number of ranks and the digest. Raises: CheckpointError"""
    try:
        manifest: dict[str, Any] = json.loads(path.read_bytes())
        if not ({"ranks", "digest"} <= manifest.keys() and all("window" in entry for entry in manifest["windows"])):
            raise ValueError("it is none of ours")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); start without --resume") from error
    return manifest


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Checkpoint:
    """The checkpoints of a run: what each rank must keep to go on after a converged window.

    folder: where they are kept; comm: communicator of the service ranks, or None
    digest: identity of the configuration; a checkpoint of another one is refused
    """

    def __init__(self, folder: Path, comm: Any = None, digest: str = "") -> None:
        self._folder = folder
        self._comm = comm
        self._rank, self._size = parallel.rank(comm), parallel.size(comm)
        self._digest = digest
        self._complete: list[dict[str, Any]] = []  # entries of the manifest, newest first
        self._said = False

    def clear(self) -> None:
        """Forget what an earlier run left: a new run starts. Collective: yes."""
        if self._rank == 0:
            (self._folder / "manifest.json").unlink(missing_ok=True)
        self._complete = []
        parallel.barrier(self._comm)

    def save(self, window: int, parts: Parts, meta: Mapping[str, Any]) -> bool:
        """Keep this rank's arrays (part -> name -> array) and JSON-able `meta` (rank 0's) after a window.

        Returns whether it was written: on a full or failing disk the run goes on with the last complete one.
        Collective: yes.
        """
        token = uuid.uuid4().hex
        token = token if self._size == 1 else self._comm.bcast(token)
        error = self._attempt(lambda: self._write_rank(window, token, parts))
        if error is None:
            entry = {"window": window, "token": token, "meta": dict(meta)}
            error = self._attempt(lambda: self._write_manifest(entry) if self._rank == 0 else None)
            if error is None:
                self._complete = [entry, *(e for e in self._complete if e["window"] != window)][:KEEP]
                self._attempt(lambda: self._clean() if self._rank == 0 else None)
                return True
        self._say_failed(window, error)
        return False

    def load(self, window: int | None = None) -> tuple[dict[str, dict[str, Array]], dict[str, Any]] | None:
        """This rank's arrays and the meta of the newest complete window that verifies; None if there is none.

        window: only this one will do
        Raises: CheckpointError if it was written by another number of ranks, belongs to another configuration,
            or nothing can be read.
        Collective: yes.
        """
        path = self._folder / "manifest.json"
        if not path.exists():
            return None
        manifest = self._checked_manifest(path)
        reasons: list[str] = []
        for entry in manifest["windows"]:
            if window is not None and entry["window"] != window:
                continue
            parts, reason = self._read_rank(entry)
            if parts is not None:
                self._complete = [e for e in manifest["windows"] if e["window"] <= entry["window"]]
                if reasons and self._rank == 0:
                    log.warning("checkpoint: %s; going on from window %d instead", "; ".join(reasons), entry["window"])
                return parts, entry["meta"]
            reasons.append(f"window {entry['window']} is damaged: {reason}")
        if window is not None and not reasons:
            reasons.append(f"window {window} was not kept")
        raise CheckpointError(
            f"{self._folder}: no checkpoint can be read ({'; '.join(reasons)}); start without --resume"
        )

    # -- writing

    def _attempt(self, action: Any) -> str | None:
        """Do something that may fail with OSError; all ranks get the first failure as a sentence. Collective: yes."""
        failure = None
        try:
            action()
        except OSError as error:
            failure = f"rank {self._rank}: {error}"
        if self._size == 1:
            return failure
        return next((text for text in self._comm.allgather(failure) if text is not None), None)

    def _write_rank(self, window: int, token: str, parts: Parts) -> None:
        folder = self._path(window)
        folder.mkdir(parents=True, exist_ok=True)
        flat = {f"{part}/{name}": array for part, arrays in parts.items() for name, array in arrays.items()}
        metadata = {"token": token, "rank": str(self._rank), "parts": json.dumps(sorted(parts))}
        write_atomically(folder / f"rank_{self._rank}.safetensors", pack_arrays(flat, metadata))

    def _write_manifest(self, entry: dict[str, Any]) -> None:
        older = [e for e in self._complete if e["window"] != entry["window"]]
        manifest = {"ranks": self._size, "digest": self._digest, "windows": [entry, *older][:KEEP]}
        _sync_folder(self._folder)
        write_atomically(self._folder / "manifest.json", json.dumps(manifest, indent=1).encode())

    def _clean(self) -> None:
        """Remove the windows that the manifest does not name."""
        kept = {self._path(entry["window"]).name for entry in self._complete}
        for folder in self._folder.glob("window_*"):
            if folder.name not in kept:
                shutil.rmtree(folder, ignore_errors=True)

    def _say_failed(self, window: int, error: str | None) -> None:
        if self._rank == 0 and not self._said:
            last = f"that of window {self._complete[0]['window']}" if self._complete else "none"
            log.warning(
                "checkpoint of window %d could not be written (%s); the run goes on, the last complete one is %s",
                window, error, last,
            )  # fmt: skip
        self._said = True

    # -- reading

    def _checked_manifest(self, path: Path) -> dict[str, Any]:
        manifest = read_manifest(path)
        ranks, windows = manifest["ranks"], [entry["window"] for entry in manifest["windows"]]
        if ranks != self._size:
            raise CheckpointError(
                f"{self._folder}: the checkpoint was written by {ranks} service rank(s), this run has {self._size}; "
                "resume with the same number"
            )
        if manifest["digest"] != self._digest:
            raise CheckpointError(
                f"{self._folder}: the checkpoint of window {max(windows, default=0)} belongs to another configuration; "
                "undo the change of the configuration, or start without --resume"
            )
        return manifest

    def _read_rank(self, entry: dict[str, Any]) -> tuple[dict[str, dict[str, Array]] | None, str]:
        """This rank's part of a window, or None and why; the same decision on all ranks. Collective: yes."""
        parts: dict[str, dict[str, Array]] = {}
        reason = ""
        try:
            arrays, metadata = read_arrays(self._path(entry["window"]) / f"rank_{self._rank}.safetensors")
            if metadata.get("token") != entry["token"]:
                raise DamagedFileError(f"rank {self._rank}'s file is of another save")
            parts = {name: {} for name in json.loads(metadata["parts"])}
            for key, array in arrays.items():
                part, _, name = key.partition("/")
                parts[part][name] = array
        except DamagedFileError as error:
            reason = str(error)
        reasons = [reason] if self._size == 1 else self._comm.allgather(reason)
        first = next((text for text in reasons if text), "")
        return (None, first) if first else (parts, "")

    def _path(self, window: int) -> Path:
        return self._folder / f"window_{window:06d}"
