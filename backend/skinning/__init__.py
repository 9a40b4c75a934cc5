"""Skin weights from a network: the tri-stream network, and the way from its sampled points to all vertices."""
