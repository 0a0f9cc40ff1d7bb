"""How the demo models are trained: a file a model, seeded; `python demo/train/all.py` runs them all."""
