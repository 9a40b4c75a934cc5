"""Rigs from motion alone: parts, free bones, skeleton, poses (Le & Deng 2012, 2014, on Gram matrices)."""
