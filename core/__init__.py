"""The words everybody here speaks: what a region is, and what an error says. Imports nothing of the pack."""
