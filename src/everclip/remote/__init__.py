"""Folders far away (`s3://`...): their files, and a lease that lets one process at a time change them."""
