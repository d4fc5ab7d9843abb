"""Variational auto-encoders: distributions, networks, objectives, and experiments that can be trusted and repeated."""
