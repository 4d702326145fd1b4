"""The resolver of one session: a process of the user's outside of the tree, where all its questions for names come."""
