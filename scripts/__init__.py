"""Programs for people without ComfyUI, on models of their own: captions for a folder, re-alignment of prompts."""
