"""neuroscale-couple: a learned surrogate with a fine solver behind it, inside a running solver.

The macro solver's side is four calls:

    closure = connect("neuroscale.yaml", comm, points)
    outputs = closure.evaluate(inputs, t, dt)
    closure.commit()
    closure.close()
"""

from neuroscale_couple.assemble import connect, serve, settings_of, split_world
from neuroscale_couple.errors import NeuroscaleError
from neuroscale_couple.reasons import Reason, Source
from neuroscale_couple.values import Points

__version__ = "0.1.0"
__all__ = ["NeuroscaleError", "Points", "Reason", "Source", "connect", "serve", "settings_of", "split_world"]
