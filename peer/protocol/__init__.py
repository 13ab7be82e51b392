"""The protocol as a pure state machine: no clock, no socket, no tensor, no randomness of its own."""
