"""The loop from prompt to re-aligned image. Only the sampler depends on a host."""
