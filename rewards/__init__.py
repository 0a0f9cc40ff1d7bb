"""Rewards: each scores images by their prompts, in batches."""
