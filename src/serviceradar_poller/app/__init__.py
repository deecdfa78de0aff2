"""The composition root: configuration and environment become one running program. The only place that knows every part."""
