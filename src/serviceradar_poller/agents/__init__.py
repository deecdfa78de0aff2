"""One coordinator per agent: its connection, breaker and schedules. What one agent does stays here."""
