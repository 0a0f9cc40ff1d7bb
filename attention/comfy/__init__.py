"""Modulated attention and attention maps in ComfyUI: UNets by their attention patches, transformers by an override."""
