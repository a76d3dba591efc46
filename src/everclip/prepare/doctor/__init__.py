"""Tests an installation and proposes remedies. Does not import torch in this process.

Imports that may fail are tried in a child process, so that a broken installation can be tested, too.
"""
