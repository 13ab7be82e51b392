"""Everything that touches torch: tasks, local steps, payloads, mixing rules, and the trainer that composes them."""
