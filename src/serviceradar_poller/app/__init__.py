"""The composition root: configuration and environment become one program; the only place that knows every part."""
