"""Drawing samples, shared by every job."""
