"""What the method judges with: each reward is a batched function of images and prompts."""
