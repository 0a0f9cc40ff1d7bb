"""The demo world: coloured shapes, a judge without trained parts, small trained models of the true classes."""
