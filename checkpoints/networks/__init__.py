"""The networks of published checkpoints that transformers has no class for."""
