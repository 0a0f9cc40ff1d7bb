"""Trained weights in the files that ComfyUI's loaders read, written and read back."""
