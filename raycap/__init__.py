"""raycap trains image captioners with reinforcement learning on Ray."""

__version__ = "0.1.0"
