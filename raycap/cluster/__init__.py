"""The loops of `raycap.train` on Ray: plain classes that become actors at the edge, and the stages of a run."""
