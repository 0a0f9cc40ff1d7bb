"""The equation (eq. 7-9) without a host: settings, regions as R, S and B, the reference, the fast version, maps."""
