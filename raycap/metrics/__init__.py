"""Caption metrics as pure functions on token lists and arrays; no model, no Ray, no state.

Text first: `ptb` tokenises as coco-caption does; `bleu`, `rouge`, `cider` score token lists; `java` asks METEOR and
SPICE where a JVM is there. On embeddings: `clipscore`, `refcompare`, `retrieval`. About a set of captions: `diversity`,
`surface`. Agreement with people: `correlation`. `files` reads result and reference files, and `score` puts it together.
"""
