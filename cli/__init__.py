"""What programs share: command-line options for models, settings and hardware.

A wrong option or file raises a `RealignError`, whose message programs print.
"""
