"""The reward contract, the built-in components, and the weighted mix of them."""
