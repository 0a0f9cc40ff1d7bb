"""The fine stage's maths (eq. 7-9): attention re-weighted so that each object gets the words that describe it.

`settings` says how strongly and when; `tokens` finds a phrase's tokens in a prompt; `layout` turns masks and tokens
into which query may see which key; `reference` is the equation written out, `modulated` the same result in little time
and memory; `diffusers_adapter` puts it into a diffusers UNet. Only that last file knows a host.
"""
