"""Skeletons from points: tokens, the autoregressive decoder, and generation that cannot leave the grammar."""
