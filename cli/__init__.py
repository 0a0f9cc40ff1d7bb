"""What programs share: command-line options for models, settings and hardware."""
