"""What the macro solver's side of a preCICE coupling needs where its calls, not preCICE, are the iterations.

Each evaluation is one coupling iteration and its answer must be to what was sent just now: serial, the macro solver
first, no acceleration; an implicit window ends when the same data come twice.
"""

from __future__ import annotations

from neuroscale_couple.config.precice_fields import Interface
from neuroscale_couple.config.precice_xml import PreciceXml
from neuroscale_couple.errors import ConfigError
from neuroscale_couple.values import Layout


def refuse_scheme(file: PreciceXml, service: str, us: str, explicit: bool = False) -> None:
    """Raises: ConfigError with the line where the coupling scheme cannot carry the macro solver's iterations.

    explicit: one evaluation a window will do, too
    """
    scheme = file.scheme(service, us)
    if scheme is None or scheme.variant == "multi":
        return
    pair, least, place = scheme.first("participants"), scheme.first("min-iterations"), file.at(scheme)
    fits = ["serial-implicit", *(["serial-explicit"] if explicit else [])]
    wrong = []
    if scheme.variant not in fits or pair is None or pair.get("first") != us:
        either = " (or <coupling-scheme:serial-explicit> for one evaluation a window)" if explicit else ""
        wrong.append(
            f"{place}: Newton's method is the iteration: write <coupling-scheme:serial-implicit>{either} with "
            f'<participants first="{us}" second="{service}" />'
        )
    if found := next(iter(scheme.all("acceleration")), None):
        wrong.append(f"{file.at(found)}: an acceleration would change what Newton's method asks; remove it")
    if scheme.variant == "serial-implicit" and (least is None or least.get("value") in ("", "0", "1")):
        wrong.append(f'{place}: a window ends when the same data come twice; add <min-iterations value="2" />')
    if wrong:
        raise ConfigError("\n".join(wrong))


def transposed(interface: Interface, inputs: Layout, outputs: Layout) -> list[tuple[int, int]]:
    """Columns of the tangent that the coupling leaves out, each with its transpose, which stands for it.

    Numbers are those of `precice_fields.output_columns`. Raises: ConfigError if a part of the tangent is not exchanged
    """
    n_out, n_in = outputs.size, inputs.size
    there = {column for carrier in interface.write for column in carrier.columns}
    pairs = []
    for i in range(n_out):
        for j in range(n_in):
            if n_out + i * n_in + j in there:
                continue
            turned = n_out + j * n_in + i
            if i == j or j >= n_out or i >= n_in or turned not in there:
                names = f"d {outputs.columns[i]} / d {inputs.columns[j]}"
                raise ConfigError(f"interfaces.write_data: Newton needs the whole tangent, {names} is not exchanged")
            pairs.append((n_out + i * n_in + j, turned))
    return pairs
