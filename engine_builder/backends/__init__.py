"""A file or a folder a backend; each imports its heavy packages only when it is used."""
