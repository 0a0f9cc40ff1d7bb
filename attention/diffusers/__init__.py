"""Modulated attention and attention maps in a diffusers UNet."""
