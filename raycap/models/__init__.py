"""Torch modules: frozen encoders, CLIP, captioners, their tokenizers and checkpoints. Nothing here trains."""
