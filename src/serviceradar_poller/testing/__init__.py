"""A virtual clock, a seeded loop and fakes that pass the same contract tests as the real thing."""
