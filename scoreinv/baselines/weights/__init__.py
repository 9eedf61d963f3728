"""Weights of learned baselines that ship with the package, each with its card."""
