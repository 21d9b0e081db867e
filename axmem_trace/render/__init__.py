"""A `Report` to something to read: text, JSON, HTML. Each renderer takes a report and returns a string."""
