"""Hansa: rent out your GPUs, or train on other people's, with nobody in the middle."""

__version__ = "0.1.0"
