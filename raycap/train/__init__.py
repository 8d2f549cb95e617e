"""The training loops in one process, readable from top to bottom; `raycap.cluster` runs the same parts on Ray."""
