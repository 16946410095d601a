"""A macro solver's script as a user writes it, without our command line around it: plain.py '{"config": ...}'."""

from __future__ import annotations

import json
import sys

import numpy as np
from mpi4py import MPI

from neuroscale_couple import Points, connect

comm = MPI.COMM_WORLD
ids = np.arange(4) + 4 * comm.Get_rank()
closure = connect(json.loads(sys.argv[1])["config"], comm, Points(ids, np.zeros((4, 2)), np.ones(4)))
closure.close()
