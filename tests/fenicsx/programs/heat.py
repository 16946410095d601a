"""Solves `problems.Heat` on all macro ranks and writes, from the first, what a test compares: heat.py CONFIG OUT."""

from __future__ import annotations

import sys
from pathlib import Path

from neuroscale_fenicsx import start

comm = start()

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from problems import Heat

heat = Heat(Path(sys.argv[1]), comm)
solved = heat.newton.solve(1.0, 1.0)
heat.law.commit()
temperature = heat.fields.dofs_of(heat.T)
reply = heat.fields.cells_of(heat.law.values["flux"].reshape(-1, 4 * 2))
ids = heat.fields.cells_of(heat.law.points.ids.reshape(-1, 4))
local = heat.law["flux"].function_space.dofmap.index_map
ghosts = local.num_ghosts
flux = heat.law["flux"].x.array
heat.law.close()
everyone = comm.gather((len(heat.law.points), ghosts, bool(np.all(flux.reshape(-1, 2)[local.size_local :, 0] != 0))))
if comm.rank == 0:
    np.savez(sys.argv[2], temperature=temperature, flux=reply, ids=ids, ranks=np.array(everyone),
             residuals=solved.residuals)  # fmt: skip
