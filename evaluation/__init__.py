"""Prompt sets → images → numbers with confidence intervals.

A wrong option or file raises a `RealignError`, whose message programs print.
"""
