"""Reports of a search's result: on a terminal, and as a page."""
