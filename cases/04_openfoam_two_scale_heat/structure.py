"""Writes 0/structure: which of 16 x 12 micro structures each cell has; needs 0/Cx and 0/Cy (run.sh makes them)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from foam_case import internal_field

BLOCKS, SIZE = (16, 12), (0.12, 0.08)
HEADER = """FoamFile
{
    version     2.0;
    format      ascii;
    class       volScalarField;
    object      structure;
}

dimensions      [0 0 0 0 0 0 0];
"""


def main() -> None:
    """The block of a cell is that of its centre."""
    x, y = (internal_field(Path("0", name)) for name in ("Cx", "Cy"))
    column, row = ((at / size * count).astype(int) for at, size, count in zip((x, y), SIZE, BLOCKS, strict=True))
    numbers = np.array2string(column + BLOCKS[0] * row, separator=" ", threshold=len(x) + 1)[1:-1]
    field = f"internalField   nonuniform List<scalar> {len(x)}({numbers});\n"
    patches = 'boundaryField   { frontAndBack { type empty; } ".*" { type zeroGradient; } }\n'
    Path("0", "structure").write_text(HEADER + field + patches)


if __name__ == "__main__":
    main()
