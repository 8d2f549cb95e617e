"""Torch modules: frozen encoders, CLIP, captioners, and their tokenizers and checkpoints. Nothing here trains or decodes."""
