"""VRAMancer: one model over all your machines."""

__version__ = "0.1.0"
