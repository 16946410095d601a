"""Reads a preCICE configuration, with the line of every tag, and says what in it does not fit ours.

Only what concerns our participant is looked at; preCICE itself checks the rest when it starts.
"""

from __future__ import annotations

import xml.parsers.expat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from neuroscale_couple.errors import ConfigError

API_ACCESS = ("api-access", "direct-access")
"""The attribute that lets us see a received mesh: its name now, and before preCICE 3.2."""
TRUE = ("true", "1", "yes", "on")


@dataclass
class Tag:
    """One XML tag. kind: what stands before the colon of its name, e.g. `coupling-scheme`; line: where it starts.

    start: byte of the file at which it starts
    """

    name: str
    attributes: dict[str, str]
    line: int
    children: list[Tag] = field(default_factory=list)
    start: int = 0

    @property
    def kind(self) -> str:
        """Name up to the colon."""
        return self.name.partition(":")[0]

    @property
    def variant(self) -> str:
        """Name after the colon."""
        return self.name.partition(":")[2]

    def get(self, attribute: str) -> str:
        """Value of an attribute, empty without it."""
        return self.attributes.get(attribute, "")

    def true(self, *attributes: str) -> bool:
        """Whether one of these attributes says yes."""
        return any(self.get(a).lower() in TRUE for a in attributes)

    def all(self, *kinds: str) -> list[Tag]:
        """Children of these kinds."""
        return [child for child in self.children if child.kind in kinds]

    def first(self, kind: str, **attributes: str) -> Tag | None:
        """The first child of a kind with these attributes (`from_` stands for `from`)."""
        wanted = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
        for child in self.all(kind):
            if all(child.get(name) == value for name, value in wanted.items()):
                return child
        return None


@dataclass(frozen=True)
class Asked:
    """What our configuration asks of one macro mesh: names of preCICE data, and whether each is a vector."""

    mesh: str
    read: Mapping[str, bool]
    write: Mapping[str, bool]


class PreciceXml:
    """A preCICE configuration file. Raises: ConfigError if it is not there or not well formed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.text = path.read_bytes()
            self.root = _parse(self.text)
        except OSError as error:
            raise ConfigError(
                f"precice_config_file_path: cannot read {path}: {error.strerror}; the path is relative to our file"
            ) from None
        except xml.parsers.expat.ExpatError as error:
            text = xml.parsers.expat.errors.messages[error.code]
            raise ConfigError(f"{path}, line {error.lineno}: not well-formed XML: {text}") from None
        if self.root.name != "precice-configuration":
            raise ConfigError(
                f"{path}, line {self.root.line}: not a preCICE configuration: its first tag is <{self.root.name}>, "
                "expected <precice-configuration>"
            )
        if old := self.root.first("solver-interface"):
            raise ConfigError(
                f"{path}, line {old.line}: <solver-interface> is the form of preCICE 2; preCICE 3 is needed: "
                "see the porting guide in its documentation"
            )
        self.data = {tag.get("name"): tag for tag in self.root.all("data")}
        self.meshes = {tag.get("name"): tag for tag in self.root.all("mesh")}
        self.participants = {tag.get("name"): tag for tag in self.root.all("participant")}

    def at(self, tag: Tag | None) -> str:
        """Place of a tag, to start a message with."""
        return f"{self.path}, line {(tag or self.root).line}"

    def dimensions(self, mesh: str) -> int:
        """Dimensions of a mesh; 0 if it is unknown."""
        tag = self.meshes.get(mesh)
        return int(tag.get("dimensions") or 0) if tag is not None and tag.get("dimensions").isdigit() else 0

    def is_vector(self, data: str) -> bool | None:
        """Whether a data field is a vector; None if it is unknown."""
        tag = self.data.get(data)
        return None if tag is None else tag.variant == "vector"

    def peers(self, us: str, meshes: Sequence[str]) -> dict[str, str]:
        """Macro participant that each of our meshes comes from; empty text where the file does not say."""
        found = {}
        for mesh in meshes:
            providers = [n for n, tag in self.participants.items() if tag.first("provide-mesh", name=mesh)]
            received = self.participants[us].first("receive-mesh", name=mesh) if us in self.participants else None
            found[mesh] = received.get("from") if received is not None else next((p for p in providers if p != us), "")
        return found

    def scheme(self, us: str, peer: str) -> Tag | None:
        """The coupling scheme between us and a macro participant."""
        for tag in self.root.all("coupling-scheme"):
            pair = tag.first("participants")
            if pair is not None and {us, peer} == {pair.get("first"), pair.get("second")}:
                return tag
            if {us, peer} <= {p.get("name") for p in tag.all("participant")}:
                return tag
        return None

    def max_iterations(self, us: str, peer: str) -> int | None:
        """Iterations after which preCICE goes on in an implicit scheme; None: explicit, or without a limit."""
        scheme = self.scheme(us, peer)
        limit = scheme.first("max-iterations") if scheme is not None else None
        return int(limit.get("value")) if limit is not None and limit.get("value").isdigit() else None

    def there_at_start(self, us: str, peer: str, data: str) -> bool:
        """Whether a field of the macro solver holds what it has written when we have initialised."""
        scheme = self.scheme(us, peer)
        if scheme is None:
            return True  # said elsewhere
        pair = scheme.first("participants")
        if scheme.variant.startswith("serial") and pair is not None and pair.get("first") == peer:
            return True
        sent = scheme.first("exchange", data=data, from_=peer, to=us)
        return sent is None or sent.true("initialize")

    def sets_window(self, us: str, peer: str) -> bool:
        """Whether the length of the time window is ours to choose."""
        scheme = self.scheme(us, peer)
        size = scheme.first("time-window-size") if scheme is not None else None
        pair = scheme.first("participants") if scheme is not None else None
        by_first = size is not None and size.get("method") == "first-participant"
        return by_first and pair is not None and pair.get("first") == us


def _parse(text: bytes) -> Tag:
    parser = xml.parsers.expat.ParserCreate()
    top = Tag("", {}, 0)
    stack = [top]

    def start(name: str, attributes: dict[str, str]) -> None:
        tag = Tag(name, attributes, parser.CurrentLineNumber, start=parser.CurrentByteIndex)
        stack[-1].children.append(tag)
        stack.append(tag)

    def end(name: str) -> None:
        stack.pop()

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.Parse(text, True)
    return top.children[0]


def mistakes(
    xml_file: PreciceXml, us: str, asked: Sequence[Asked], exported: frozenset[str] = frozenset(), tested: bool = True
) -> Iterator[str]:
    """What in the file does not fit: each with its line, and with the line of XML to write.

    exported: data that we write for preCICE's export alone; tested: look at the convergence measures too
    """
    for each in asked:
        yield from _mesh(xml_file, each)
    peers = xml_file.peers(us, [a.mesh for a in asked])
    participant = xml_file.participants.get(us)
    if participant is None:
        yield _no_participant(xml_file, us, asked, peers)
    else:
        for each in asked:
            yield from _participant(xml_file, participant, each, peers[each.mesh])
    for peer in dict.fromkeys(name for name in peers.values() if name):
        theirs = [
            Asked(a.mesh, a.read, {n: v for n, v in a.write.items() if n not in exported})
            for a in asked
            if peers[a.mesh] == peer
        ]
        yield from _peer(xml_file, us, peer, theirs, tested)


def _mesh(file: PreciceXml, asked: Asked) -> Iterator[str]:
    mesh = file.meshes.get(asked.mesh)
    for name, vector in {**asked.read, **asked.write}.items():
        if name not in file.data:
            near = get_close_matches(name, file.data, 1, 0.75)
            hint = f" (there is {near[0]!r})" if near else ""
            yield (
                f"{file.at(None)}: there is no data {name!r}{hint}; add to <precice-configuration>: "
                f'<data:{"vector" if vector else "scalar"} name="{name}" />'
            )
    if mesh is None:
        near = get_close_matches(asked.mesh, file.meshes, 1, 0.5)
        hint = f" (there is {near[0]!r}: correct interfaces.mesh_name, or)" if near else ""
        uses = "".join(f'<use-data name="{name}" />' for name in {**asked.read, **asked.write})
        yield (
            f"{file.at(None)}: there is no mesh {asked.mesh!r}{hint}; add to <precice-configuration>: "
            f'<mesh name="{asked.mesh}" dimensions="2">{uses}</mesh>'
        )
        return
    used = {tag.get("name") for tag in mesh.all("use-data")}
    for name in {**asked.read, **asked.write}:
        if name not in used:
            line = f'<use-data name="{name}" />'
            yield f"{file.at(mesh)}: mesh {asked.mesh!r} does not use data {name!r}; add to it: {line}"


def _lines(asked: Asked, peer: str) -> str:
    receive = f'<receive-mesh name="{asked.mesh}" from="{peer or "Macro"}" api-access="true" />'
    read = "".join(f'<read-data name="{name}" mesh="{asked.mesh}" />' for name in asked.read)
    write = "".join(f'<write-data name="{name}" mesh="{asked.mesh}" />' for name in asked.write)
    return receive + read + write


def _no_participant(file: PreciceXml, us: str, asked: Sequence[Asked], peers: Mapping[str, str]) -> str:
    known = ", ".join(sorted(file.participants)) or "none"
    body = "".join(_lines(a, peers[a.mesh]) for a in asked)
    return (
        f"{file.at(None)}: there is no participant {us!r} (participants: {known}); correct participant_name, or add to "
        f'<precice-configuration>: <participant name="{us}">{body}</participant>'
    )


def _participant(file: PreciceXml, us: Tag, asked: Asked, peer: str) -> Iterator[str]:
    name, mesh = us.get("name"), asked.mesh
    receive = f'<receive-mesh name="{mesh}" from="{peer or "Macro"}" api-access="true" />'
    received = us.first("receive-mesh", name=mesh)
    if us.first("provide-mesh", name=mesh):
        yield (
            f"{file.at(us.first('provide-mesh', name=mesh))}: participant {name!r} provides mesh {mesh!r}, but it "
            f"works on the macro solver's mesh; write instead: {receive}"
        )
    elif received is None:
        yield f"{file.at(us)}: participant {name!r} does not receive mesh {mesh!r}; add to it: {receive}"
    elif not received.true(*API_ACCESS):
        yield (f"{file.at(received)}: mesh {mesh!r} is received without access for us (api-access); write: {receive}")
    for data, ours, theirs in (
        *((data, "read-data", "write-data") for data in asked.read),
        *((data, "write-data", "read-data") for data in asked.write),
    ):
        line = f'<{ours} name="{data}" mesh="{mesh}" />'
        wrong = us.first(theirs, name=data, mesh=mesh)
        if us.first(ours, name=data, mesh=mesh) is None and wrong is not None:
            yield f"{file.at(wrong)}: {name!r} has <{theirs}> of {data!r}, the wrong direction; write: {line}"
        elif us.first(ours, name=data, mesh=mesh) is None:
            yield f"{file.at(us)}: participant {name!r} has no <{ours}> of {data!r} on mesh {mesh!r}; add to it: {line}"


def _peer(file: PreciceXml, us: str, peer: str, asked: Sequence[Asked], tested: bool) -> Iterator[str]:
    macro = file.participants.get(peer)
    if macro is None:
        yield f"{file.at(None)}: mesh {asked[0].mesh!r} comes from {peer!r}, but there is no such participant"
        return
    for each in asked:
        if macro.first("provide-mesh", name=each.mesh) is None:
            line = f'<provide-mesh name="{each.mesh}" />'
            yield f"{file.at(macro)}: participant {peer!r} does not provide mesh {each.mesh!r}; add to it: {line}"
        yield from _macro_data(file, macro, each)
    if us not in file.participants:
        return
    yield from _m2n(file, us, peer)
    scheme = file.scheme(us, peer)
    if scheme is None:
        yield (
            f"{file.at(None)}: there is no coupling scheme of {peer!r} and {us!r}; add to <precice-configuration>: "
            f'<coupling-scheme:parallel-implicit><participants first="{peer}" second="{us}" />'
            '<max-time value="1" /><time-window-size value="0.1" /><max-iterations value="20" /> … '
            "</coupling-scheme:parallel-implicit>"
        )
        return
    for each in asked:
        yield from _exchanges(file, scheme, us, peer, each)
    if tested:
        yield from _measures(file, scheme, asked)


def _macro_data(file: PreciceXml, macro: Tag, asked: Asked) -> Iterator[str]:
    peer = macro.get("name")
    lines = [("write-data", data) for data in asked.read] + [("read-data", data) for data in asked.write]
    for tag, data in lines:
        # A macro solver with a mesh of its own for the data reaches ours by a mapping.
        if macro.first(tag, name=data) is None:
            line = f'<{tag} name="{data}" mesh="{asked.mesh}" />'
            yield f"{file.at(macro)}: participant {peer!r} has no <{tag}> of {data!r}; add to it: {line}"


def _m2n(file: PreciceXml, us: str, peer: str) -> Iterator[str]:
    for tag in file.root.all("m2n"):
        if {tag.get("acceptor"), tag.get("connector")} == {us, peer}:
            if tag.variant.startswith("mpi"):
                yield (
                    f"{file.at(tag)}: <m2n:{tag.variant}> joins programs of one mpirun; separate launches, as here, "
                    f'need <m2n:sockets acceptor="{peer}" connector="{us}" />'
                )
            return
    yield (
        f"{file.at(None)}: nothing joins {peer!r} and {us!r}; add to <precice-configuration>: "
        f'<m2n:sockets acceptor="{peer}" connector="{us}" />'
    )


def _measures(file: PreciceXml, scheme: Tag, asked: Sequence[Asked]) -> Iterator[str]:
    """In a parallel scheme the first answer of a window repeats the last one: it must not count as converged."""
    measures = [tag for tag in scheme.children if tag.name.endswith("convergence-measure")]
    least = scheme.first("min-iterations")
    enough = least is not None and least.get("value").isdigit() and int(least.get("value")) > 1
    read = {(name, each.mesh) for each in asked for name in each.read}
    if scheme.variant != "parallel-implicit" or not measures or enough or not read:
        return
    if not read & {(tag.get("data"), tag.get("mesh")) for tag in measures}:
        name, mesh = sorted(read)[0]
        yield (
            f"{file.at(measures[0])}: all convergence measures look at our data; in a parallel scheme our first answer "
            "of a window repeats the last one, and the window would end with it; add to the scheme: "
            f'<relative-convergence-measure limit="1e-4" data="{name}" mesh="{mesh}" />'
        )


def _exchanges(file: PreciceXml, scheme: Tag, us: str, peer: str, asked: Asked) -> Iterator[str]:
    wanted = [(data, peer, us) for data in asked.read] + [(data, us, peer) for data in asked.write]
    for data, source, target in wanted:
        line = f'<exchange data="{data}" mesh="{asked.mesh}" from="{source}" to="{target}" />'
        found = scheme.first("exchange", data=data, mesh=asked.mesh, from_=source, to=target)
        turned = scheme.first("exchange", data=data, mesh=asked.mesh, from_=target, to=source)
        if found is None and turned is not None:
            yield f"{file.at(turned)}: {data!r} is exchanged in the wrong direction; write: {line}"
        elif found is None:
            on = f"on mesh {asked.mesh!r}"
            yield f"{file.at(scheme)}: the coupling scheme does not exchange {data!r} {on}; add to it: {line}"
        elif source == us and found.true("initialize"):
            yield (
                f"{file.at(found)}: {us!r} cannot give initial values of {data!r} on a mesh that it learns about at "
                f"the start; write: {line}"
            )
