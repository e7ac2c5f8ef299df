"""Measurements, the makers of the tiny base, and the torture of runs. Nothing of the trainer loads them."""
