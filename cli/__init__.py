"""What the programs share: options for the models, the settings and the hardware."""
