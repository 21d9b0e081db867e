"""Write a `Report` as text, JSON or HTML. Each renderer takes a report and returns a string."""
