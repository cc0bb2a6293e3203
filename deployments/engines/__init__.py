"""Engines run a network: OpenVINO on CPU, torch on CUDA and, as the reference, on CPU."""
