"""Models: files on disk, what is in them, and the torch modules made of them."""
