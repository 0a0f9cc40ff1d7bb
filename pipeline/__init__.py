"""The loop from prompt to re-aligned image, host-free but for the sampler."""
