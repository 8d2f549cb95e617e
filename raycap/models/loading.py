"""What libraries raise when weights are missing, damaged, not to be had, or another model's."""

from __future__ import annotations

import pickle

from safetensors import SafetensorError

UNREADABLE = (OSError, RuntimeError, ValueError, LookupError, EOFError, pickle.UnpicklingError, SafetensorError)
"""OSError: no file, no hub (urllib's and huggingface_hub's errors are OSErrors). RuntimeError: torch on a broken
archive or on tensors that do not fit. The others: a broken pickle, a broken header. What is not here is a fault of the
program and comes through as it is."""
