"""The engine: what happens between a decoder's layers when visual tokens are reduced.

Outside a reduced layer everything is in *logical* coordinates: the full sequence that the caller
knows. Inside, it is *physical*: the tokens that are left. `Sequence` holds the map between them
for one forward pass, `cache` for what decoding needs later.
"""
