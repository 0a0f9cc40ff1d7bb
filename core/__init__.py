"""What the other folders share: regions, prompts, images, files, errors. Imports nothing else of the pack."""
