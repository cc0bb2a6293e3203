"""A load generator: closed and open loops over keep-alive connections, in a process of its own."""
