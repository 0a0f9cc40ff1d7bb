"""What it costs, beside the peers: each script prints ours, the obvious implementation and theirs in one run."""
