"""Fine-tuning with rewards: scripts that read top to bottom and run without ComfyUI."""
