"""A deployed model and its versions: update behind gates, promote, roll back. A store is a folder."""
