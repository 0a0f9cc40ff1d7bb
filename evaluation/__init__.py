"""Prompt sets → images → numbers with confidence intervals."""
