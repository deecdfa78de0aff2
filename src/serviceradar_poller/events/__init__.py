"""Every event, one frozen value each; ``observe`` turns them into log lines and metrics. No behaviour belongs here."""
