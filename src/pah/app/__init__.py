"""A page on a learner: ask it, teach it, look at it; and the same over HTTP. Needs the extra `app`."""
