"""The usual layouts of public data sets: one function each, from a folder to a list of images with labels."""
