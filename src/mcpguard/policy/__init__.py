"""Pure functions: profile to policy, path automaton, decisions."""
