"""What goes on the Hub: cards from measured numbers, folders that load without this package, and what may not be uploaded."""
