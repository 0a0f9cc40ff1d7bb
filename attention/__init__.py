"""Modulated attention (eq. 7-9): each object in an image is attended to by the words that describe it.

`equation/` knows no host: `settings` says how strongly and when, `tokens` finds a phrase's tokens in a prompt, `layout`
turns masks and tokens into R, S and B, `reference` is the equation written out, `modulated` the same result in little
time and memory, `maps` shows what attends to what. `diffusers/` and `comfy/` put it into a host's models.
"""
