"""The two models of open_clip that a backbone can hold."""

from open_clip.model import CLIP, CustomTextCLIP

Clip = CLIP | CustomTextCLIP
"""A model with both towers. open_clip's `CoCa` has the attributes that everclip uses."""
