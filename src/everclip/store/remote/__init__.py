"""Stores far away (`s3://`...): a working copy on this machine, and changes that are published in one step."""
