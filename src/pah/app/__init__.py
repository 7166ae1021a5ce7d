"""A page to teach a learner and to ask it; needs the extra `app`."""
