"""Text-to-image sampling with diffusers."""
