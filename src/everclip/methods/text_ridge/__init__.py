"""The method `text-ridge`: texts move to their images in closed form."""
