"""A store over HTTP: embed, classify, search, versions; a hot switch to the version that serves, and a page."""
