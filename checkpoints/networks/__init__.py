"""Architectures of published checkpoints for which transformers has no class."""
