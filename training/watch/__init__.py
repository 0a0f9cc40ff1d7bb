"""What a run shows of itself: log, samples, curves, trackers."""
