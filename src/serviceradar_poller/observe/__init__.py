"""Events turned into log lines and metrics, and what is shown of the running program over HTTP and on a terminal."""
