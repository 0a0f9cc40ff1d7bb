"""One run: its models, its steps, its gradients, and how it ends."""
