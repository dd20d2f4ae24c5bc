"""Feature networks, and what is measured in their spaces."""
