"""Examine an installation: what is here, what does not work, and what to do about it. Nothing here imports torch.

What could fail on import is tried in a process of its own, so that a broken installation can still be examined.
"""
