"""A run on the disk: its folder, its checkpoints, what they were made of, and going on from them."""
