"""The embedded data set: coloured shapes, drawn and described here, the same for the same seed on every machine.

`world` decides what is in a scene, `drawing` turns it into pixels, `grammar` writes about it, `styles` holds colours
and words, `dataset` writes and imports the whole set, `oracle` knows the truth and gives the ceiling of the templates.
"""
