"""Sightline's HTTP application: the one package that binds the deployments together."""

__version__ = "0.1.0"
