"""Results as pictures: regions over an image, panels, heat maps."""
