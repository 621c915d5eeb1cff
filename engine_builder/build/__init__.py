"""A build from request to checked engine, in a process of its own."""
