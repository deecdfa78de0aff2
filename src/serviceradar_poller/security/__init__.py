"""Certificates and who is trusted with what."""
