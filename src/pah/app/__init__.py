"""A web page on which a learner is asked and taught; it needs the extra `app`."""
