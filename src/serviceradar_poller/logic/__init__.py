"""
Decisions, pure: ``(state, input, now) -> (state, actions)``.

No loop, clock, randomness, file, socket or log belongs here: time and chance come as arguments, effects are returned.
"""
