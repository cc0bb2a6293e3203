"""Offline jobs beside a running server."""
