"""From a captioner's state to captions: sampling with counter-based randomness, greedy, beam search."""
