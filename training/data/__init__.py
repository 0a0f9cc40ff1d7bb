"""What a step learns from: prompts, images of the frozen model, ranked candidates."""
