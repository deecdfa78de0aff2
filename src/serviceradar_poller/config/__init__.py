"""Configuration: the model, and how it is read, checked and shown. Acts on nothing. Importing it loads no module."""
