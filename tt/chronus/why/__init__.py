"""Why it broke: the guilty writes, the files that they changed, and the process that wrote them."""
