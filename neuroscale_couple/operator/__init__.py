"""The network: levels, scale attention, heads, ensemble, export."""
